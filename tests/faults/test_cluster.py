"""A Ray cluster: what it makes, refuses and leaves behind; and two hosts, of which one breaks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from attempts import attempt, leftovers, made
from conftest import tiny_world

from spunge.run.executors.cluster import KEEPALIVE

HERE = Path(__file__).parent
PORT = 6399
ADDRESS = f"127.0.0.1:{PORT}"


def test_without_ray_or_a_cluster_there_is_one_clear_line(
    world: dict[str, Any], write_recipe: Callable[[dict[str, Any]], Path], tmp_path: Path
) -> None:
    write_recipe({**world, "controls": []})
    ended = attempt(("run", "recipe.yaml", "--executor", "ray", "--address", "127.0.0.1:9"), tmp_path)
    assert ended.code == 2, ended.errors
    assert "pip install 'spunge[ray]'" in ended.errors or "no Ray cluster to be had there" in ended.errors
    assert "Traceback" not in ended.errors
    assert not leftovers(tmp_path / "runs")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Ray on this host, started without a word on how links are watched."""
    pytest.importorskip("ray")
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    said = ("--num-cpus=2", "--object-store-memory=100000000", "--include-dashboard=false", "--disable-usage-stats")
    environment = {name: value for name, value in os.environ.items() if name not in KEEPALIVE}
    environment["RAY_AUTH_MODE"] = "disabled"  # whatever token lies in this user's home
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    subprocess.run([*ray, "start", "--head", f"--port={PORT}", *said], env=environment, check=True, capture_output=True)
    yield
    subprocess.run([*ray, "stop"], env=environment, check=True, capture_output=True)


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a run on the cluster; what a test leaves of it is ended."""
    started: list[subprocess.Popen[str]] = []
    run = [
        sys.executable,
        "-m",
        "spunge",
        "run",
        "recipe.yaml",
        "--quiet",
        "--allow-code",
        "--executor",
        "ray",
        "--address",
        ADDRESS,
    ]
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])

    def begin(**more: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": path, "RAY_AUTH_MODE": "disabled", **more}
        started.append(subprocess.Popen(run, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.long
def test_a_cluster_makes_what_one_process_makes(cluster: None, start: Start, tiny_model: Path, tmp_path: Path) -> None:
    world = tiny_world(tmp_path, tiny_model)
    world["unlearn"] = {"method": "task_vector_negation", "batch_size": 4, "max_length": 16}
    world["unlearn"]["lora"] = {"rank": 2, "dropout": 0.0}
    (tmp_path / "recipe.yaml").write_text(json.dumps({**world, "retain": None}))
    alone = attempt(("run", "recipe.yaml", "--quiet", "--out", "alone"), tmp_path)
    assert alone.code == 0, alone.errors
    run = start()
    _, errors = run.communicate(timeout=180)
    assert run.returncode == 0, errors
    found = made(tmp_path / "runs")
    assert found == made(tmp_path / "alone")
    assert not leftovers(tmp_path / "runs")


@pytest.mark.long
def test_hosts_that_watch_their_links_otherwise_are_refused(
    cluster: None, start: Start, tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "recipe.yaml").write_text(json.dumps(tiny_world(tmp_path, tiny_model)))
    run = start(**dict.fromkeys(KEEPALIVE, "10000"))
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 2, errors
    assert "set it alike on every host and here" in errors
    assert "Traceback" not in errors


@pytest.mark.long
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 2), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_stuck_task_ends_with_the_run_and_its_child_too(
    cluster: None, start: Start, tiny_model: Path, tmp_path: Path, sent: int, code: int
) -> None:
    world = {**tiny_world(tmp_path, tiny_model), "controls": []}
    world["unlearn"] = {"method": "slow:Stuck", "log": str(tmp_path / "log")}
    (tmp_path / "recipe.yaml").write_text(json.dumps(world))
    run, deadline = start(), time.monotonic() + 120
    while not (tmp_path / "log").exists() or len((tmp_path / "log").read_text().splitlines()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    stuck = [psutil.Process(int(number)) for number in (tmp_path / "log").read_text().split()]
    assert len(stuck) == 4
    run.send_signal(sent)
    _, errors = run.communicate(timeout=30)
    assert run.returncode == code, errors
    assert "Traceback" not in errors
    assert "SIGTERM" not in errors
    _, alive = psutil.wait_procs(stuck, timeout=10)
    assert not alive
    if sent != signal.SIGKILL:
        assert not list((tmp_path / "runs" / "store").glob(".mark.*"))


@pytest.mark.long
def test_a_head_that_is_killed_ends_the_run_with_a_line(
    cluster: None, start: Start, tiny_model: Path, tmp_path: Path
) -> None:
    """The last test on this cluster: nothing of it is left."""
    (tmp_path / "seconds").write_text("1")
    world = {**tiny_world(tmp_path, tiny_model), "controls": []}
    world["unlearn"] = {"method": "slow:Sleeper", "steps": 300, "log": str(tmp_path / "log")}
    (tmp_path / "recipe.yaml").write_text(json.dumps(world))
    run, deadline = start(), time.monotonic() + 120
    while not (tmp_path / "log").exists():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    heads = [process for process in psutil.process_iter(["cmdline"]) if is_head(process)]
    assert len(heads) == 1
    heads[0].kill()
    _, errors = run.communicate(timeout=120)
    assert run.returncode in (1, 2), errors  # 1 where Ray ends the process itself, once the line is out
    assert "the cluster's head, " in errors
    assert "finished stages are kept, and the same command continues" in errors
    assert "Traceback" not in errors
    assert json.loads((tmp_path / "runs/tiny/manifest.json").read_text())["status"] == "failed"


def is_head(process: psutil.Process) -> bool:
    words = process.info["cmdline"] or [""]
    return words[0].endswith("gcs_server") and any(str(PORT) in word for word in words)


@pytest.mark.long
def test_two_hosts_one_killed_then_cut_off() -> None:
    script = HERE / "two_hosts.sh"
    done = subprocess.run(
        [script], env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True, check=False, timeout=900
    )
    if done.returncode == 77:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all as it should be" in done.stdout

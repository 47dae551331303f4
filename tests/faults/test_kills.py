"""Killed, interrupted, out of disk at any moment: run again, and it ends as if nothing had been."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from attempts import Meddling, Refusing, Signalled, SmallFiles, attempt, leftovers, made, start, wait
from conftest import tiny_world


@dataclass
class Unbroken:
    """A recipe over all stages, what an undisturbed run of it makes, and in how many file operations."""

    run: tuple[str, ...]
    made: dict[str, Any]
    operations: int


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Unbroken:
    directory = tmp_path_factory.mktemp("unbroken")
    world = tiny_world(directory, tiny_model)
    benign = {"suite": "benign", "method": "perplexity", "goal": "retain", "batch_size": 4}
    asked = [{**world["evaluate"][0], "batch_size": 2}, {**benign, "sources": world["retain"]["sources"]}]
    (directory / "recipe.yaml").write_text(json.dumps({**world, "evaluate": asked}))
    run = ("run", str(directory / "recipe.yaml"), "--quiet")
    counting = Meddling(directory / "runs")
    ended = attempt(run, directory, counting)
    assert ended.code == 0, ended.errors
    assert not leftovers(directory / "runs")
    return Unbroken(run, made(directory / "runs"), counting.count.value)


def finished(tmp_path: Path, unbroken: Unbroken, out: str, **options: Any) -> None:
    """Runs again, and asserts that all is as in an unbroken run, and nothing else is there."""
    again = attempt((*unbroken.run, "--out", out), tmp_path, **options)
    assert again.code == 0, again.errors
    found, expected = made(tmp_path / out), unbroken.made
    assert found.keys() == expected.keys()
    assert {name for name in found if found[name] != expected[name]} == set()
    assert not leftovers(tmp_path / out)


def one_line(errors: str, *parts: str) -> None:
    """Asserts that an attempt ended in one clear line about the user's own paths."""
    lines = [line for line in errors.splitlines() if "warning:" not in line]
    assert len(lines) == 1, errors
    assert all(part in lines[0] for part in parts), errors
    assert not any(part.startswith(".") for part in lines[0].replace(":", "").split("/")[1:]), errors


def test_killed_at_a_random_moment(unbroken: Unbroken, tmp_path: Path) -> None:
    operations = unbroken.operations
    moments = random.Random(7)
    for number in range(3):
        at = moments.randrange(1, operations)
        killed = attempt((*unbroken.run, "--out", f"runs{number}"), tmp_path, Signalled(tmp_path / f"runs{number}", at))
        assert killed.code == -signal.SIGKILL, (at, killed.errors)
        finished(tmp_path, unbroken, f"runs{number}")


def test_asked_to_stop_at_random_moments(unbroken: Unbroken, tmp_path: Path) -> None:
    for sent, code, earliest, latest in ((signal.SIGTERM, 143, 0.05, 0.2), (signal.SIGINT, 2, 0.1, 0.4)):
        at = int(random.Random(sent).uniform(earliest, latest) * unbroken.operations)
        moment = Signalled(tmp_path / "runs", at, signal=sent)
        stopped = attempt((*unbroken.run, "--out", "runs"), tmp_path, moment)
        assert stopped.code == code, stopped.errors
        assert "Traceback" not in stopped.errors
        assert all(name.startswith("store/.scratch") for name in leftovers(tmp_path / "runs"))
    finished(tmp_path, unbroken, "runs")


def test_the_disk_is_read_only_then_full_then_takes_small_files_alone(unbroken: Unbroken, tmp_path: Path) -> None:
    middle = random.Random(errno.ENOSPC).randrange(unbroken.operations // 3, unbroken.operations // 2)
    runs = tmp_path / "runs"
    for reason, meddling in (
        (errno.EROFS, Refusing(runs, 1, errno=errno.EROFS)),
        (errno.ENOSPC, Refusing(runs, middle, errno=errno.ENOSPC)),
        (errno.EFBIG, SmallFiles(9000)),
    ):
        refused = attempt((*unbroken.run, "--out", "runs"), tmp_path, meddling)
        assert refused.code == 2, refused.errors
        one_line(refused.errors, "runs", os.strerror(reason))
    finished(tmp_path, unbroken, "runs")


def test_ctrl_c_reaches_the_workers_too_and_leaves_no_process(unbroken: Unbroken, tmp_path: Path) -> None:
    children: list[psutil.Process] = []

    def interrupt_when_busy(pid: int) -> None:
        children.extend(busy(tmp_path, pid))
        os.killpg(pid, signal.SIGINT)

    words = (*unbroken.run, "unlearn.epochs=300", "--jobs", "2")
    ended = attempt(words, tmp_path, meanwhile=interrupt_when_busy)
    assert ended.code == 2, ended.errors
    assert "interrupted" in ended.errors
    assert "Traceback" not in ended.errors
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    assert all(name.startswith("store/.scratch") for name in leftovers(tmp_path / "runs"))


def busy(tmp_path: Path, pid: int) -> list[psutil.Process]:
    """Waits until a worker has begun, and returns all processes that a run has started."""
    deadline = time.monotonic() + 60
    while not list((tmp_path / "runs").glob("store/unlearn/.*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    return psutil.Process(pid).children(recursive=True)


def test_workers_die_with_their_parent(unbroken: Unbroken, tmp_path: Path) -> None:
    children: list[psutil.Process] = []

    def kill_when_busy(pid: int) -> None:
        children.extend(busy(tmp_path, pid))
        os.kill(pid, signal.SIGKILL)

    words = (*unbroken.run, "unlearn.epochs=300", "--jobs", "2")
    assert attempt(words, tmp_path, meanwhile=kill_when_busy).code == -signal.SIGKILL
    assert len(children) >= 2
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


@pytest.mark.long
@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EROFS])
def test_the_disk_fills_up_or_becomes_read_only_at_a_random_moment(
    unbroken: Unbroken, tmp_path: Path, reason: int
) -> None:
    for at in random.Random(reason).sample(range(1, unbroken.operations * 2 // 3), 4):
        shutil.rmtree(tmp_path / "runs", ignore_errors=True)
        refused = attempt((*unbroken.run, "--out", "runs"), tmp_path, Refusing(tmp_path / "runs", at, errno=reason))
        assert refused.code == 2, refused.errors
        one_line(refused.errors, "runs", os.strerror(reason))
        finished(tmp_path, unbroken, "runs")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """A disk of its own below `disk`, whose mount options are then changed."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], capture_output=True, check=False).returncode:
        pytest.skip("nothing may be mounted here")

    def remount(options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", place], check=True)

    yield remount
    subprocess.run(["umount", place], check=True)


@pytest.mark.long
@pytest.mark.parametrize("jobs", ["1", "2"])
@pytest.mark.parametrize("kilobytes", [4, 40, 100, 200, 300])
def test_a_real_disk_is_full(
    unbroken: Unbroken, tmp_path: Path, disk: Callable[[str], None], kilobytes: int, jobs: str
) -> None:
    disk(f"size={kilobytes}k")
    refused = attempt((*unbroken.run, "--jobs", jobs, "--out", "disk/runs"), tmp_path)
    assert refused.code == 2, refused.errors
    one_line(refused.errors, "runs", os.strerror(errno.ENOSPC))
    assert all(name.startswith("store/.scratch") for name in leftovers(tmp_path / "disk/runs"))
    disk("size=50m")
    finished(tmp_path, unbroken, "disk/runs")


@pytest.mark.long
def test_a_real_disk_is_read_only(unbroken: Unbroken, tmp_path: Path, disk: Callable[[str], None]) -> None:
    finished(tmp_path, unbroken, "disk/runs")
    disk("ro")
    vector = next((tmp_path / "disk/runs/store/unlearn").iterdir())
    for words in (
        (*unbroken.run, "--out", "disk/runs"), (*unbroken.run, "--out", "disk/new"), ("report", "disk/runs/tiny"),
        ("merge", "--base", tmp_path, vector, "--out", "disk/new"),
    ):  # fmt: skip
        refused = attempt(words, tmp_path)
        assert refused.code == 2, (words, refused.errors)
        assert "Traceback" not in refused.errors
    for words in (("plan", *unbroken.run[1:2]), ("store", "ls"), ("store", "verify"), ("store", "gc")):
        looked = attempt((*words, "--out", "disk/runs"), tmp_path)
        assert looked.code == 0, (words, looked.errors)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(20))
def test_killed_at_any_moment(unbroken: Unbroken, tmp_path: Path, seed: int) -> None:
    """By the clock, with figures, now with one process and now with two workers."""
    jobs = ("--jobs", "2") if seed % 2 else ()
    begun = time.monotonic()
    assert attempt((*unbroken.run, *jobs, "--out", "timed"), tmp_path, figures=True).code == 0
    took = time.monotonic() - begun
    process = start((*unbroken.run, *jobs, "--out", "runs"), tmp_path, figures=True)
    time.sleep(random.Random(seed).uniform(0, took))
    children = psutil.Process(process.pid).children(recursive=True) if process.is_alive() else []
    process.kill()
    wait(process)
    psutil.wait_procs(children, timeout=10)
    finished(tmp_path, unbroken, "runs", figures=True)

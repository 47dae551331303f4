"""Killed, interrupted, out of disk at any moment: run again, and it ends as if nothing had been."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import time
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


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 2)])
def test_asked_to_stop_at_a_random_moment(unbroken: Unbroken, tmp_path: Path, sent: int, code: int) -> None:
    operations = unbroken.operations
    at = random.Random(sent).randrange(operations // 10, operations // 2)
    stopped = attempt((*unbroken.run, "--out", "runs"), tmp_path, Signalled(tmp_path / "runs", at, signal=sent))
    assert stopped.code == code, stopped.errors
    assert "Traceback" not in stopped.errors
    assert set(leftovers(tmp_path / "runs")) <= {"store/.scratch"} or all(
        name.startswith("store/.scratch") for name in leftovers(tmp_path / "runs")
    )
    finished(tmp_path, unbroken, "runs")


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EROFS])
def test_the_disk_fills_up_or_becomes_read_only(unbroken: Unbroken, tmp_path: Path, reason: int) -> None:
    operations = unbroken.operations
    for at in (1, random.Random(reason).randrange(2, operations * 2 // 3)):
        refused = attempt((*unbroken.run, "--out", "runs"), tmp_path, Refusing(tmp_path / "runs", at, errno=reason))
        assert refused.code == 2, refused.errors
        one_line(refused.errors, "runs", os.strerror(reason))
    finished(tmp_path, unbroken, "runs")


def test_no_file_may_grow(unbroken: Unbroken, tmp_path: Path) -> None:
    for limit in (300, 9000):
        refused = attempt((*unbroken.run, "--out", "runs"), tmp_path, SmallFiles(limit))
        assert refused.code == 2, refused.errors
        one_line(refused.errors, "runs", os.strerror(errno.EFBIG))
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

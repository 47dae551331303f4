"""Killed, interrupted, out of disk at any moment: run again, and it ends as if nothing had been."""

from __future__ import annotations

import errno
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from attempts import Meddling, Refusing, Signalled, SmallFiles, attempt, leftovers, made, start, wait

RUN = ("run", "recipe.yaml", "--quiet")
FULL = "(No space left on device|File too large)"


@pytest.fixture
def recipe(world: dict[str, Any], write_recipe: Callable[[dict[str, Any]], Path]) -> Path:
    """A tiny recipe over all stages, in its own directory."""
    retain = world["retain"]["sources"]
    benign = {"suite": "benign", "method": "perplexity", "goal": "retain", "sources": retain, "batch_size": 4}
    return write_recipe({**world, "evaluate": [{**world["evaluate"][0], "batch_size": 2}, benign]})


@pytest.fixture
def unbroken(recipe: Path, tmp_path: Path) -> tuple[dict[str, Any], int]:
    """What an unbroken run makes, and how many file operations it takes."""
    counting = Meddling(tmp_path / "whole")
    ended = attempt((*RUN, "--out", "whole"), tmp_path, counting)
    assert ended.code == 0, ended.errors
    assert not leftovers(tmp_path / "whole")
    return made(tmp_path / "whole"), counting.count.value


def finished(tmp_path: Path, expected: dict[str, Any], out: str, **options: Any) -> None:
    """Runs again, and asserts that all is as in an unbroken run, and nothing else is there."""
    again = attempt((*RUN, "--out", out), tmp_path, **options)
    assert again.code == 0, again.errors
    found = made(tmp_path / out)
    assert found.keys() == expected.keys()
    assert {name for name in found if found[name] != expected[name]} == set()
    assert not leftovers(tmp_path / out)


def one_line(errors: str, *parts: str) -> None:
    """Asserts that an attempt ended in one clear line about the user's own paths."""
    lines = [line for line in errors.splitlines() if "warning:" not in line]
    assert len(lines) == 1, errors
    assert all(part in lines[0] for part in parts), errors
    assert not any(part.startswith(".") for part in lines[0].replace(":", "").split("/")[1:]), errors


def test_killed_at_a_random_moment(unbroken: tuple[dict[str, Any], int], tmp_path: Path) -> None:
    expected, operations = unbroken
    moments = random.Random(7)
    for number in range(3):
        at = moments.randrange(1, operations)
        killed = attempt((*RUN, "--out", f"runs{number}"), tmp_path, Signalled(tmp_path / f"runs{number}", at))
        assert killed.code == -signal.SIGKILL, (at, killed.errors)
        finished(tmp_path, expected, f"runs{number}")


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_asked_to_stop_at_a_random_moment(
    unbroken: tuple[dict[str, Any], int], tmp_path: Path, sent: int, code: int
) -> None:
    expected, operations = unbroken
    at = random.Random(sent).randrange(operations // 10, operations // 2)
    stopped = attempt((*RUN, "--out", "runs"), tmp_path, Signalled(tmp_path / "runs", at, signal=sent))
    assert stopped.code == code, stopped.errors
    assert "Traceback" not in stopped.errors
    assert set(leftovers(tmp_path / "runs")) <= {"store/.scratch"} or all(
        name.startswith("store/.scratch") for name in leftovers(tmp_path / "runs")
    )
    finished(tmp_path, expected, "runs")


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EROFS])
def test_the_disk_fills_up_or_becomes_read_only(
    unbroken: tuple[dict[str, Any], int], tmp_path: Path, reason: int
) -> None:
    expected, operations = unbroken
    for at in (1, random.Random(reason).randrange(2, operations * 2 // 3)):
        refused = attempt((*RUN, "--out", "runs"), tmp_path, Refusing(tmp_path / "runs", at, errno=reason))
        assert refused.code == 2, refused.errors
        one_line(refused.errors, "runs", os.strerror(reason))
    finished(tmp_path, expected, "runs")


def test_no_file_may_grow(unbroken: tuple[dict[str, Any], int], tmp_path: Path) -> None:
    expected, _ = unbroken
    for limit in (300, 9000):
        refused = attempt((*RUN, "--out", "runs"), tmp_path, SmallFiles(limit))
        assert refused.code == 2, refused.errors
        one_line(refused.errors, "runs", os.strerror(errno.EFBIG))
    finished(tmp_path, expected, "runs")


def test_workers_die_with_their_parent(recipe: Path, tmp_path: Path) -> None:
    children: list[psutil.Process] = []

    def kill_when_busy(pid: int) -> None:
        parent = psutil.Process(pid)
        deadline = time.monotonic() + 60
        while not list((tmp_path / "runs").glob("store/unlearn/.*")) and time.monotonic() < deadline:
            time.sleep(0.02)
        children.extend(parent.children(recursive=True))
        parent.kill()

    words = (*RUN, "unlearn.epochs=300", "--jobs", "2")
    assert attempt(words, tmp_path, meanwhile=kill_when_busy).code == -signal.SIGKILL
    assert len(children) >= 2
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


@pytest.mark.long
@pytest.mark.parametrize("seed", range(20))
def test_killed_at_any_moment(unbroken: tuple[dict[str, Any], int], tmp_path: Path, seed: int) -> None:
    """By the clock, with figures, now with one process and now with two workers."""
    expected, _ = unbroken
    jobs = ("--jobs", "2") if seed % 2 else ()
    begun = time.monotonic()
    assert attempt((*RUN, *jobs, "--out", "timed"), tmp_path, figures=True).code == 0
    took = time.monotonic() - begun
    process = start((*RUN, *jobs, "--out", "runs"), tmp_path, figures=True)
    time.sleep(random.Random(seed).uniform(0, took))
    children = psutil.Process(process.pid).children(recursive=True) if process.is_alive() else []
    process.kill()
    wait(process)
    psutil.wait_procs(children, timeout=10)
    finished(tmp_path, expected, "runs", figures=True)

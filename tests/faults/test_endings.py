"""How a run ends that cannot go on: its manifest says which, and no page reloads for a run that is gone."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from attempts import Meddling, Signalled, attempt

from spunge.report import artifacts
from spunge.rows.items import JOURNAL


def status_of(run: Path) -> tuple[str, str]:
    """What the manifest says, and what a reader is told."""
    return json.loads((run / "manifest.json").read_text())["status"], artifacts.read(run).manifest.status


@dataclass
class FullFor(Meddling):
    """From the first file of the report on, the disk is full for all but the manifest."""

    def happen(self, event: str, args: tuple[Any, ...]) -> None:
        if "/report/" in str(args[0]) and event == "open" and args[2] & (os.O_WRONLY | os.O_CREAT):
            raise OSError(28, os.strerror(28), args[0])


@pytest.fixture
def recipe(world: dict[str, Any], write_recipe: Callable[[dict[str, Any]], Path]) -> Path:
    return write_recipe({**world, "controls": []})


@pytest.fixture
def at_a_terminal() -> Iterator[None]:
    """What `nohup` began ignores a lost terminal, and so does all that it begins."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("at_a_terminal")
def test_a_lost_terminal_is_a_request_to_stop_and_a_kill_is_told_by_the_lock(recipe: Path, tmp_path: Path) -> None:
    lost = attempt(("run", recipe, "--quiet"), tmp_path, Signalled(tmp_path / "runs", 60, signal=signal.SIGHUP))
    assert lost.code == 128 + signal.SIGHUP, lost.errors
    assert "Traceback" not in lost.errors
    assert status_of(tmp_path / "runs" / "tiny") == ("interrupted", "interrupted")
    killed = attempt(("run", recipe, "--quiet"), tmp_path, Signalled(tmp_path / "runs", 60))
    assert killed.code == -signal.SIGKILL
    assert status_of(tmp_path / "runs" / "tiny") == ("running", "interrupted")
    journal = tmp_path / "runs" / "tiny" / JOURNAL
    with journal.open("a") as stream:
        stream.write('{"number": 99, "stage": {"st')  # half a line, as a kill may leave
    ended = artifacts.read(tmp_path / "runs" / "tiny").manifest
    assert ended.stages[0].stage == "split"
    assert ended.split.attribute == "domain"
    assert attempt(("run", recipe, "--quiet"), tmp_path).code == 0
    assert status_of(tmp_path / "runs" / "tiny") == ("done", "done")
    assert not journal.exists()


def test_a_disk_that_is_full_for_the_report_leaves_no_run_that_says_it_is_done(recipe: Path, tmp_path: Path) -> None:
    refused = attempt(("run", recipe, "--quiet"), tmp_path, FullFor(tmp_path / "runs", 0))
    assert refused.code == 2, refused.errors
    assert "No space left on device" in refused.errors
    assert status_of(tmp_path / "runs" / "tiny") == ("failed", "failed")
    assert attempt(("run", recipe, "--quiet"), tmp_path).code == 0
    assert status_of(tmp_path / "runs" / "tiny") == ("done", "done")

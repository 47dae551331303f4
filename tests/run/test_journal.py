"""The journal: a line a task while a run goes on, and all of it in the manifest when its status changes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from spunge.recipe import reading
from spunge.report import artifacts
from spunge.rows.items import JOURNAL
from spunge.run.journal import Journal
from spunge.run.store import Artifact


def test_a_task_costs_a_line_and_the_manifest_is_written_when_the_status_changes(
    world: dict[str, Any], write_recipe: Callable[[dict[str, Any]], Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / JOURNAL).write_text('{"number": 0, "stage": {"stage": "of an earlier run, which was killed"}}\n')
    journal = Journal(run, reading.read(write_recipe(world)), "cpu", "")
    journal.write("running")
    manifest = (run / "manifest.json").read_bytes()
    sizes = []
    for number in range(40):
        task: Any = SimpleNamespace(stage="look", name=f"task {number:02}", seed=0)
        journal.note(task, Artifact(tmp_path, {"key": f"{number:032}"}))
        sizes.append((run / JOURNAL).stat().st_size)
    assert (run / "manifest.json").read_bytes() == manifest
    assert {after - before for before, after in itertools.pairwise(sizes)} <= {sizes[0], sizes[0] + 1}
    running = artifacts.read(run).manifest.stages
    journal.write("done")
    assert not (run / JOURNAL).exists()
    ended = artifacts.read(run).manifest.stages
    assert [stage.name for stage in running] == [stage.name for stage in ended] == [f"task {n:02}" for n in range(40)]
    assert running == ended


def test_a_line_that_the_manifest_holds_already_counts_once(
    world: dict[str, Any], write_recipe: Callable[[dict[str, Any]], Path], tmp_path: Path
) -> None:
    """As a kill leaves it that comes after the manifest is written and before the journal goes."""
    run = tmp_path / "run"
    run.mkdir()
    journal = Journal(run, reading.read(write_recipe(world)), "cpu", "")
    task: Any = SimpleNamespace(stage="look", name="look", seed=0)
    journal.note(task, Artifact(tmp_path, {"key": "0" * 32}))
    lines = (run / JOURNAL).read_text()
    journal.write("running")
    (run / JOURNAL).write_text(lines + json.dumps({"number": 1, "stage": {"stage": "look", "name": "next"}}) + "\n")
    assert [stage.name for stage in artifacts.read(run).manifest.stages] == ["look", "next"]

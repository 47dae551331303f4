"""What keys are made of is remembered while its files stay as they are, and no longer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from spunge.recipe.schema import Experiment
from spunge.rows.sources import Source
from spunge.run import identity as module
from spunge.run import pipeline
from spunge.run.identity import digest, identity
from spunge.weights.language_model import LanguageModel


def test_sources_and_models_are_known_by_what_their_files_hold_now(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "rows").mkdir()
    file = tmp_path / "rows" / "a.jsonl"
    file.write_text('{"text": "one"}\n')
    source = Source(path=str(file.parent))
    first = identity(source)
    (tmp_path / "rows" / "b.jsonl").write_text('{"text": "two"}\n')
    assert identity(source) != first
    shutil.copytree(tiny_model, tmp_path / "model")
    model = LanguageModel(id=str(tmp_path / "model"))
    assert digest(model) == digest(LanguageModel(id=str(tiny_model)))
    (tmp_path / "model" / "config.json").write_text(
        json.dumps({**json.loads((tiny_model / "config.json").read_text()), "rope_theta": 7.0})
    )
    assert digest(model) != digest(LanguageModel(id=str(tiny_model)))


def test_a_files_content_is_read_once_while_it_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source(path=str(tmp_path / "rows.jsonl"))
    Path(source.path).write_text('{"text": "one"}\n')
    first = identity(source)
    monkeypatch.setattr(module, "load_corpus", lambda *_, **__: pytest.fail("read again"))
    assert identity(source) == first


def test_items_that_changed_between_two_runs_of_one_process_are_asked_again(
    world: dict[str, Any], tmp_path: Path
) -> None:
    experiment = Experiment.model_validate({**world, "controls": []})
    pipeline.run(experiment, out=tmp_path / "runs")
    items = Path(world["evaluate"][0]["sources"][0]["path"])
    rows = [json.loads(line) for line in items.read_text().splitlines()]
    items.write_text("".join(json.dumps({**row, "answer": (row["answer"] + 1) % 4}) + "\n" for row in rows))
    run = pipeline.run(experiment, out=tmp_path / "runs")
    stages = json.loads((run / "manifest.json").read_text())["stages"]
    assert {stage["status"] for stage in stages if stage["stage"] == "evaluate"} == {"computed"}
    assert {stage["status"] for stage in stages if stage["stage"] == "unlearn"} == {"reused"}

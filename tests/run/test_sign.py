"""A task vector in the store holds its sign: whoever takes it by hand removes what a run removes, and never adds it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from spunge import merging
from spunge.files import checksum
from spunge.mergers import TaskArithmetic
from spunge.recipe.schema import Experiment
from spunge.run import pipeline, standalone
from spunge.run import store as stores
from spunge.weights.language_model import LanguageModel
from spunge.weights.task_vector import TaskVector


@pytest.fixture
def negation(world: dict[str, Any]) -> Experiment:
    """Task vector negation of all weights, λ = 0.5."""
    method = {"method": "task_vector_negation", "lora": None, "learning_rate": 1e-3, "lambda": 0.5}
    return Experiment.model_validate({**world, "unlearn": method, "controls": []})


def of_subset_a(run: Path) -> Path:
    manifest = json.loads((run / "manifest.json").read_text())
    return run / next(variant["task_vector"] for variant in manifest["variants"] if variant["name"] == "subset:a")


def as_before(artifact: Path) -> None:
    """Makes an artifact what it was before the sign was part of it."""
    file = artifact / "manifest.json"
    manifest = {key: part for key, part in json.loads(file.read_text()).items() if key != "signed"}
    manifest["scale"] = 1.0
    manifest["checksum"] = checksum(manifest)
    file.write_text(json.dumps(manifest))


@pytest.mark.parametrize("old", [False, True])
def test_an_artifact_exported_by_hand_is_the_base_minus_what_was_learnt(
    negation: Experiment, tmp_path: Path, old: bool
) -> None:
    artifact = of_subset_a(pipeline.run(negation, out=tmp_path / "runs"))
    if old:
        as_before(artifact)
    learnt = load_file(artifact / "task_vector.safetensors")
    assert max(float(delta.abs().max()) for delta in learnt.values()) > 0
    standalone.export(negation.model, artifact, tmp_path / "exported")
    base, exported = (LanguageModel(id=str(path)).checkpoint() for path in (negation.model.id, tmp_path / "exported"))
    for name, delta in learnt.items():
        assert torch.equal(exported.read(name), base.read(name) - delta)
    vector = merging.open_variant(artifact, base)
    merged = merging.merge(TaskArithmetic(), {"a": vector}).task_vector
    for name, delta in learnt.items():
        assert torch.equal(merged.delta(name), -delta)


def test_old_artifacts_are_reused_and_read_as_new_ones_are(negation: Experiment, tmp_path: Path) -> None:
    run = pipeline.run(negation, out=tmp_path / "runs")
    [merge] = [*(tmp_path / "runs" / "store" / "merge").iterdir()]
    new = {file.name: file.read_bytes() for file in merge.iterdir() if file.name != "manifest.json"}
    for artifact in (tmp_path / "runs" / "store" / "unlearn").iterdir():
        as_before(artifact)
    stores.Store(tmp_path / "runs" / "store").delete(merge)
    run = pipeline.run(negation, out=tmp_path / "runs")
    stages = json.loads((run / "manifest.json").read_text())["stages"]
    assert {stage["stage"]: stage["status"] for stage in stages if stage["stage"] in ("unlearn", "merge")} == {
        "unlearn": "reused",
        "merge": "computed",
    }
    assert {file.name: file.read_bytes() for file in merge.iterdir() if file.name != "manifest.json"} == new


def test_unlearning_by_hand_stores_the_same_sign_with_lambda(negation: Experiment, tmp_path: Path) -> None:
    step = standalone.Step(negation.model.id, tmp_path / "vector", device="cpu")
    standalone.unlearn(step, negation.unlearn, {"": negation.forget.sources}, [])
    assert TaskVector.open(tmp_path / "vector").scale == -0.5


def test_a_negative_lambda_is_what_was_asked_for(tmp_path: Path) -> None:
    tau = TaskVector({"weight": torch.ones(2)}, 1.0, {"method": "task_vector_negation"})
    assert TaskVector.open(tau.save(tmp_path / "vector")).scale == 1.0

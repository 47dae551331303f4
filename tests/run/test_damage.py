"""Variants brought to the same damage: measured again from what is stored, reused, and told where that cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import sentences, write_jsonl
from training_models import work_in

import spunge
from spunge.errors import RecipeError
from spunge.interfaces import LoadedVariant
from spunge.recipe import reading
from spunge.recipe.schema import Damage, Experiment
from spunge.rows.items import mean_values
from spunge.rows.sources import load_corpus
from spunge.run import pipeline
from spunge.run.damage import MatchDamage
from spunge.run.foretell import plan as planning
from spunge.run.texts import nearest
from spunge.run.variant import Base, Variant
from spunge.weights.language_model import LanguageModel, Resident
from spunge.weights.task_vector import TaskVector

COMPARED = {"joint", "joint_equal_steps", "spunge", "random_split", "sequential"}


@pytest.fixture
def matched(world: dict[str, Any]) -> dict[str, Any]:
    controls = ["joint", "joint_equal_steps", "random_split", "sequential"]
    damage = {"budgets": [0.0001, 0.001], "headline": 0.001, "tokens": 60, "length": 20, "longest": 64}
    return {**world, "controls": controls, "damage": damage}


def manifest_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "manifest.json").read_text())


def naive_damage(experiment: Experiment, vector: Path, scale: float) -> float:
    """The divergence per token of base + scale · vector, each text read at once in float64."""
    resident = Resident()
    model, tokenizer = resident.base(experiment.model)
    assert experiment.damage is not None
    assert experiment.retain is not None
    retain = load_corpus(experiment.retain.sources)
    near = nearest(retain, load_corpus(experiment.forget.sources))
    task = MatchDamage(Variant("spunge", "merged", 0), experiment.damage, (), near, None, Base(experiment.model))
    texts = task.tokens(near, tokenizer)

    def logs() -> list[torch.Tensor]:
        with torch.no_grad():
            return [model(torch.tensor([list(ids)])).logits[0].double().log_softmax(-1) for ids in texts]

    before = logs()
    with resident.variant(experiment.model, TaskVector.load(vector).scaled(scale)):
        after = logs()
    kl = [(p.exp() * (p - q)).sum(-1) for p, q in zip(before, after, strict=True)]
    return float(torch.cat(kl).mean())


def test_all_that_are_compared_are_asked_at_the_same_damage(matched: dict[str, Any], tmp_path: Path) -> None:
    experiment = Experiment.model_validate(matched)
    run = pipeline.run(experiment, out=tmp_path / "runs")
    manifest = manifest_of(run)
    noted = manifest["damage"]
    assert {found["variant"] for found in noted["matches"]} == COMPARED
    vectors = {variant["name"]: variant["task_vector"] for variant in manifest["variants"]}
    assert (noted["headline"], noted["near"]) == (0.001, "the retain rows most like the forget set")
    for found in noted["matches"]:
        assert found["status"] == "matched", found
        assert 0.95 * found["budget"] <= found["near"] <= found["budget"]
        assert found["far"] is None
        measured = naive_damage(experiment, run / vectors[found["variant"]], found["scale"])
        assert measured == pytest.approx(found["near"], rel=0.02, abs=2e-6)
    asked = {(point["variant"], point["scale"]): point["near"] for point in noted["curve"]}
    assert all(asked[name, 0.0] == 0.0 and (name, 1.0) in asked for name in COMPARED)
    assert not [warning for warning in manifest["warnings"] if "budget" in warning]

    # What is exported is what was asked: the merged model at its λ.
    own = next(m for m in noted["matches"] if (m["variant"], m["budget"]) == ("spunge", 0.001))
    exported = LanguageModel(id=str(spunge.export(run, tmp_path / "exported"))).checkpoint()
    vector = TaskVector.load(run / vectors["spunge"]).scaled(own["scale"])
    for name in vector:
        assert torch.equal(exported.read(name), experiment.model.checkpoint().changed(vector, name))

    # What is asked is the scaled variant: another λ, another evaluation, and nothing of it is made twice.
    evaluated = {stage["name"]: stage["key"] for stage in manifest["stages"] if stage["stage"] == "evaluate"}
    plain = pipeline.run(Experiment.model_validate({**matched, "damage": None, "name": "plain"}), out=tmp_path / "runs")
    without = {stage["name"]: stage["key"] for stage in manifest_of(plain)["stages"] if stage["stage"] == "evaluate"}
    differ = {name.partition(" on ")[0] for name in evaluated if evaluated[name] != without[name]}
    # Joint takes as many steps here as the subsets together, so its evaluations stand for the control of equal steps.
    assert differ == COMPARED - {"joint_equal_steps"}
    assert {step["status"] for step in planning.plan(experiment, out=tmp_path / "runs")} == {"reused"}


def test_it_is_on_wherever_it_can_be_had(world: dict[str, Any], tmp_path: Path) -> None:
    del world["damage"]
    assert Experiment.model_validate(world).damage == Damage()
    assert Experiment.model_validate({**world, "damage": None}).damage is None
    assert Experiment.model_validate({**world, "damage": {"headline": 0.2}}).damage == Damage(
        budgets=[0.2], headline=0.2
    )
    assert Damage.model_validate({"budgets": [0.5, 0.1]}).headline == 0.5
    forget = world["unlearn"] = {"method": "task_vector_negation", "max_steps": 1}
    swept = {"sweep": {"merge.lambda": [0.5, 1]}, "unlearn": forget}
    without = {**world, "retain": None, "controls": []}
    assert Experiment.model_validate(without).damage is None
    retained = {**world["evaluate"][0], "suite": "kept", "goal": "retain"}
    assert Experiment.model_validate({**world, **swept, "evaluate": [*world["evaluate"], retained]}).damage is None
    manifest = manifest_of(pipeline.run(Experiment.model_validate(without), out=tmp_path / "runs"))
    [told] = [line for line in manifest["not_run"] if "same damage" in line]
    assert told == "the same damage to the rest for all (no retain set to measure it on): each is at its own λ"


def test_a_merge_that_changes_nothing_is_left_as_it_is(matched: dict[str, Any], tmp_path: Path) -> None:
    matched |= {"merge": {"method": "ties", "lambda": 0}, "controls": ["joint"]}
    manifest = manifest_of(pipeline.run(Experiment.model_validate(matched), out=tmp_path / "runs"))
    [told] = [warning for warning in manifest["warnings"] if "no damage" in warning]
    assert told == "spunge (seed 0) does no damage at any λ, as where nothing is changed: compared at λ = 1."


def test_another_headline_measures_nothing_again(matched: dict[str, Any], tmp_path: Path) -> None:
    matched["controls"] = ["joint"]
    experiment = Experiment.model_validate(matched)
    pipeline.run(experiment, out=tmp_path / "runs")
    other = reading.parse(reading.dump(experiment), overrides=["damage.headline=0.0001"])
    manifest = manifest_of(pipeline.run(other, out=tmp_path / "runs"))
    assert {stage["status"] for stage in manifest["stages"] if stage["stage"] == "damage"} == {"reused"}
    assert manifest["damage"]["headline"] == 0.0001
    scales = {found["variant"]: found["scale"] for found in manifest["damage"]["matches"] if found["budget"] == 0.0001}
    assert scales == {v["name"]: v["scale"] for v in manifest["variants"] if v["name"] in ("joint", "spunge")}


def test_a_variant_that_never_does_so_much_is_said_so(matched: dict[str, Any], tmp_path: Path) -> None:
    matched["controls"] = []
    matched["damage"] = {**matched["damage"], "budgets": [0.001], "longest": 0.01}
    manifest = manifest_of(pipeline.run(Experiment.model_validate(matched), out=tmp_path / "runs"))
    [found] = manifest["damage"]["matches"]
    assert (found["status"], found["scale"]) == ("unreached", 0.01)
    [warning] = [warning for warning in manifest["warnings"] if "budget" in warning]
    assert warning.startswith("spunge (seed 0) does less damage than the budget at every λ tried")


def test_a_suites_loss_is_asked_anew_at_every_scale(matched: dict[str, Any], tmp_path: Path) -> None:
    kept = write_jsonl(tmp_path / "kept.jsonl", [{"text": text} for text in sentences(60, 1)])
    suite = {"suite": "kept", "method": "perplexity", "goal": "retain", "sources": [{"path": str(kept)}]}
    matched |= {
        "controls": [],
        "evaluate": [*matched["evaluate"], suite],
        "unlearn": {"method": "task_vector_negation", "learning_rate": 1e-2, "epochs": 4},
        "damage": {"suite": "kept", "budgets": [0.02], "longest": 64},
    }
    experiment = Experiment.model_validate(matched)
    run = pipeline.run(experiment, out=tmp_path / "runs")
    [found] = manifest_of(run)["damage"]["matches"]
    assert found["status"] == "matched"
    merged = next(stage["path"] for stage in manifest_of(run)["stages"] if stage["stage"] == "merge")
    change = TaskVector.load(run / merged).scaled(found["scale"])
    asked = experiment.damage_suite
    assert asked is not None
    resident, scores = Resident(), []
    for vector in (None, change):
        with resident.variant(experiment.model, vector) as model:
            variant = LoadedVariant("x", model, experiment.model.load_tokenizer(), "")
            items = asked.evaluate(variant, work_in(tmp_path / str(len(scores))))
        scores.append(mean_values(items, ["perplexity"])["perplexity"])
    assert found["near"] == pytest.approx((scores[1] - scores[0]) / scores[0], rel=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"damage": {"headline": 0.5, "budgets": [0.1]}}, "headline"),
        ({"damage": {"budgets": [0.0], "headline": 0.0}}, "above 0"),
        ({"damage": {}, "retain": None}, "retain"),
        ({"damage": {"also": ["far"]}}, "far"),
        ({"damage": {"also": [0.7]}}, "add it"),
        ({"damage": {"suite": "nowhere"}}, "no retain suite"),
    ],
)
def test_budgets_that_cannot_be_are_refused(world: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        reading.parse(json.dumps({**world, **change}))


def test_the_same_texts_for_all(matched: dict[str, Any]) -> None:
    """Another variant or seed is measured on the same texts, drawn from the whole set."""
    experiment = Experiment.model_validate(matched)
    assert experiment.retain is not None
    retain, base = load_corpus(experiment.retain.sources), Base(experiment.model)
    tokenizer = LanguageModel(id=experiment.model.id).load_tokenizer()
    damage = Damage(tokens=40, length=20)
    one = MatchDamage(Variant("joint", "joint", 0), damage, (), retain, None, base).tokens(retain, tokenizer)
    other = MatchDamage(Variant("spunge", "merged", 5), damage, (), retain, None, base).tokens(retain, tokenizer)
    assert one == other
    assert all(len(ids) == 20 for ids in one)

"""What `robustness` in a recipe comes to: which attacks, on what, at which cost; those from outside like any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from spunge.errors import RecipeError, SpungeError
from spunge.evaluators.attacks import ATTACKS, Attack
from spunge.interfaces import LoadedVariant
from spunge.recipe import reading
from spunge.recipe.schema import Experiment
from spunge.run import pipeline, subsets
from spunge.run.foretell.plan import forecast
from spunge.weights.checkpoint import export
from spunge.weights.task_vector import TaskVector

MODULE = '''
"""Does it come back when the embedding of every word is a little longer?"""

from collections.abc import Iterator
from typing import Literal

from spunge.evaluators.attacks.attack import Attack, restored


class Louder(Attack):
    """Scales the embeddings, and asks again."""

    method: Literal["louder"] = "louder"

    @property
    def settings(self):
        return ("twice",)

    def attempts(self, variant, work):
        with restored(variant.model):
            variant.model.get_input_embeddings().weight.data.mul_(2)
            yield "twice", self.of.evaluate
'''


def experiment(world: dict[str, Any], **settings: Any) -> Experiment:
    [hazards] = world["evaluate"]
    kept = {**hazards, "suite": "kept", "goal": "retain"}
    return Experiment.model_validate({**world, "controls": ["joint"], "evaluate": [hazards, kept], **settings})


def test_cheap_attacks_are_few_and_take_less_than_half(world: dict[str, Any]) -> None:
    read = subsets.load(experiment(world, robustness="cheap"))
    assert {attack.named() for attack in read.robustness.attacks} < ATTACKS.keys()
    assert all(attack.cheap is not None for attack in read.robustness.attacks)
    assert {attack.suite for attack in read.robustness.attacks} >= {"hazards: quantization", "hazards: stripping"}


def test_samples_together_cost_less_than_half(world: dict[str, Any]) -> None:
    knowledge = reading.read("lab-knowledge", ["robustness=cheap"])
    read = subsets.load(knowledge)
    whole = sum(suite.forecast(knowledge.model).operations or 0.0 for suite in knowledge.evaluate)
    attacks = sum(attack.forecast(knowledge.model).operations or 0.0 for attack in read.robustness.attacks)
    assert 0.15 * whole < attacks < 0.25 * whole


def test_full_asks_all_that_can_be_asked_and_says_what_cannot(world: dict[str, Any], tmp_path: Path) -> None:
    plan = forecast(experiment(world, robustness="full"), out=tmp_path / "runs")
    assert plan.not_asked == {
        "option_shift on hazards": "'hazards' scores each choice by itself: there is no order to change",
        "membership on hazards": "membership needs rows that the base model was not trained on: --unseen of an audit, "
        "or it stands under `evaluate` with its `outsiders`",
        "sibling_merge on hazards": "sibling_merge needs a model of the same family: it stands under `evaluate` with "
        "its `sibling`",
    }
    asked = {step["name"].partition(" on ")[2] for step in plan.steps if step["name"].startswith("base on ")}
    suites = {
        f"hazards: {name}" for name in ATTACKS if name not in ("option_shift", "membership", "sibling_merge", "gcg")
    }
    assert asked == {"hazards", "kept", "hazards: benign text", *suites}


def test_a_run_asks_a_model_that_never_knew_beside_the_base(
    world: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    read = experiment(world, robustness=["interpolation"])
    checkpoint = read.model.checkpoint()
    name = next(name for name in sorted(checkpoint.tensors) if name.endswith("down_proj.weight"))
    shape = checkpoint.tensors[name].shape
    export(checkpoint.directory, TaskVector({name: torch.ones(shape)}), tmp_path / "never_knew")
    named = experiment(world, robustness=["interpolation"], oracle={"id": str(tmp_path / "never_knew")}, seeds=[0, 1])
    run = pipeline.run(named, out=tmp_path / "runs")
    results = json.loads((run / "report" / "results.json").read_text())
    assert {(row["name"], row["seed"]) for row in results["variants"] if row["kind"] == "oracle"} == {
        ("oracle", 0), ("oracle", 1)
    }  # fmt: skip
    scores = {
        row["variant"]: row["value"]
        for row in results["scores"]
        if (row["suite"], row["metric"], row["attribute"], row["seed"]) == ("hazards", "p_correct", None, None)
    }
    assert scores["oracle"] != scores["base"]
    assert "oracle" in (run / "report" / "index.html").read_text()
    with pytest.raises(SpungeError, match=r"no_such"):
        pipeline.run(experiment(world, oracle={"id": str(tmp_path / "no_such")}), out=tmp_path / "runs")


def test_an_unknown_attack_is_refused_with_the_one_that_is_meant(world: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="'quantisation' is no attack; did you mean 'quantization'"):
        experiment(world, robustness=["quantisation"])
    with pytest.raises(ValueError, match="is not a class derived from Attack"):
        experiment(world, robustness=["spunge.interfaces:Evaluator"])


def test_one_from_outside_is_asked_resumed_and_reported(
    world: dict[str, Any], tmp_path: Path, write_recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "louder_from_outside.py").write_text(MODULE, encoding="utf-8")
    settings = {**world, "controls": ["joint"], "robustness": ["stripping", "louder_from_outside:Louder"]}
    recipe = write_recipe(settings)
    with pytest.raises(RecipeError, match="--allow-code"):
        reading.read(recipe)
    read = reading.read(recipe, allow_code=True)
    assert read.programs == ["robustness: louder_from_outside:Louder"]

    # Killed while the first model is attacked: the next run goes on, and asks the rest.
    Louder = read.attacks[1]
    attempts, asked = Louder.attempts, []

    def once(self: Attack, variant: LoadedVariant, work: Any) -> Any:
        asked.append(variant.name)
        if len(asked) == 2:
            raise KeyboardInterrupt
        yield from attempts(self, variant, work)

    monkeypatch.setattr(Louder, "attempts", once)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(read, out=tmp_path / "runs")
    run = pipeline.run(read, out=tmp_path / "runs")
    assert asked == ["base", "joint", "joint", "subset:a", "subset:b", "spunge"]

    items = pl.read_parquet(run / "items.parquet")
    assert set(items["suite"]) == {"hazards", "hazards: stripping", "hazards: louder"}
    rows = json.loads((run / "report" / "results.json").read_text())["attacks"]
    assert {(row["suite"], row["setting"]) for row in rows} == {
        ("hazards: stripping", "rank 1 removed"), ("hazards: stripping", "rank 4 removed"), ("hazards: louder", "twice")
    }  # fmt: skip
    assert "- louder_from_outside:Louder" in (run / "recipe.yaml").read_text()

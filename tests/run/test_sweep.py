"""Sweeps: the pick and the front against a plain reading of the rule, and a grid that retrains nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from conftest import sentences, write_jsonl
from hypothesis import given
from hypothesis import strategies as st

from spunge.errors import RecipeError
from spunge.evaluators import MultipleChoice, Perplexity
from spunge.interfaces import Evaluator
from spunge.recipe import reading
from spunge.recipe.schema import Experiment
from spunge.rows.items import VALIDATION_SHARE, ItemTable, load_items
from spunge.run import pipeline, sweep
from spunge.run.foretell import plan as planning

HAZARDS = MultipleChoice.model_validate({"suite": "hazards", "goal": "forget", "sources": [{"path": "x"}]})
RETAINED = MultipleChoice.model_validate({"suite": "retained", "goal": "retain", "sources": [{"path": "x"}]})
STORIES = Perplexity.model_validate({"suite": "stories", "goal": "retain", "sources": [{"path": "x"}]})
EVALUATORS: list[Evaluator] = [HAZARDS, RETAINED, STORIES]


def table(**metrics: list[float]) -> ItemTable:
    rows = [{"metric": metric, "value": value} for metric, values in metrics.items() for value in values]
    return pl.DataFrame(rows, schema={"metric": pl.String, "value": pl.Float64})


def answers(hazards: float, retained: float, perplexity: float) -> dict[str, ItemTable]:
    return {
        "hazards": table(acc=[hazards] * 4),
        "retained": table(acc=[retained, retained]),
        "stories": table(nll=[4 * math.log(perplexity), 6 * math.log(perplexity)], tokens=[4, 6]),
    }


shares = st.integers(1, 8).map(lambda eighths: eighths / 8)


@given(st.lists(st.tuples(shares, shares), min_size=1, max_size=6))
def test_the_pick_and_the_front_are_the_rules(scores: list[tuple[float, float]]) -> None:
    candidates = [({"merge.density": place}, answers(h, r, 10 / r)) for place, (h, r) in enumerate(scores)]
    points = sweep.measure("spunge", 7, candidates, answers(1, 1, 10), EVALUATORS)
    for point, (hazards, retained) in zip(points, scores, strict=True):
        assert (point.forget, point.retain) == pytest.approx((hazards, retained))
        better = [(h, r) for h, r in scores if (h <= hazards and r >= retained) and (h, r) != (hazards, retained)]
        assert point.front == (not better)
    best = max(retained - hazards for hazards, retained in scores)
    first = next(place for place, (hazards, retained) in enumerate(scores) if retained - hazards == best)
    assert [point.picked for point in points] == [place == first for place in range(len(scores))]


def test_a_model_that_answers_with_nan_is_not_picked() -> None:
    base, good = answers(1, 1, 10), answers(0.5, 1, 12)
    broken = {
        "hazards": table(acc=[0] * 3, nan=[0, 1, 0, 0]),
        "retained": table(acc=[0.25] * 2, nan=[0] * 2),
        "stories": table(nll=[9.0], tokens=[4, 6], nan=[0, 1]),
    }
    huge = {**good, "stories": table(nll=[1e5], tokens=[4])}
    first, second, third = sweep.measure("spunge", 7, [({}, broken), ({}, good), ({}, huge)], base, EVALUATORS)
    assert (first.forget, first.retain) == (1.0, pytest.approx(0.125))
    assert third.retain == pytest.approx(0.5)
    assert second.picked


@pytest.fixture
def two_goals(world: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """The small experiment with a suite of what must stay, and a sweep."""
    path = write_jsonl(tmp_path / "kept.jsonl", [{"text": text} for text in sentences(20, 4)])
    stories = {"suite": "stories", "method": "perplexity", "goal": "retain", "sources": [{"path": str(path)}]}
    grid = {"merge.density": [0.2, 0.8], "merge.lambda": [1, 3]}
    return {**world, "controls": ["joint"], "evaluate": [*world["evaluate"], stories], "sweep": grid}


def test_a_grid_is_merged_and_picked_on_its_own_part(two_goals: dict[str, Any], tmp_path: Path) -> None:
    recipe = Experiment.model_validate(two_goals)
    plain = Experiment.model_validate({**two_goals, "sweep": {}})
    pipeline.run(plain, out=tmp_path / "runs")
    planned = planning.plan(recipe, out=tmp_path / "runs")
    assert {step["status"] for step in planned if step["stage"] == "unlearn"} == {"reused"}
    run = pipeline.run(recipe, out=tmp_path / "runs")
    manifest = json.loads((run / "manifest.json").read_text())
    assert {stage["status"] for stage in manifest["stages"] if stage["stage"] == "unlearn"} == {"reused"}
    assert not manifest["warnings"]  # λ is tried on the joint baseline as well

    found = json.loads((run / "report" / "results.json").read_text())["sweep"]
    assert found["axes"] == two_goals["sweep"]
    assert found["validation_share"] == VALIDATION_SHARE == 0.3
    assert found["suites"]["stories"] == {"metric": "perplexity", "goal": "retain"}
    settings = {"spunge": [], "joint": []}
    for point in found["points"]:
        settings[point["variant"]].append(point["settings"])
    assert settings["spunge"] == [{"merge.density": d, "merge.lambda": f} for d in (0.2, 0.8) for f in (1, 3)]
    assert settings["joint"] == [{"merge.lambda": 1}, {"merge.lambda": 3}]

    # the tables are of the other items, and of the picked settings
    table = pl.read_parquet(run / "items.parquet")
    for evaluator in recipe.evaluate:
        parts = {
            part: {item.id for item in load_items(getattr(evaluator, "sources"), part=part)}  # noqa: B009
            for part in ("validation", "test")
        }
        assert parts["validation"]
        assert not parts["validation"] & parts["test"]
        assert set(table.filter(pl.col("suite") == evaluator.suite)["item"]) == parts["test"]
    best = next(point for point in found["points"] if point["variant"] == "spunge" and point["picked"])
    words = [f"{name}={value}" for name, value in best["settings"].items()]
    alone = pipeline.run(reading.parse(reading.dump(plain), overrides=[*words, "name=alone"]), out=tmp_path / "runs")
    vectors = [
        next(
            v["task_vector"]
            for v in json.loads((each / "manifest.json").read_text())["variants"]
            if v["name"] == "spunge"
        )
        for each in (run, alone)
    ]
    assert vectors[0] == vectors[1]

    again = pipeline.run(recipe, out=tmp_path / "runs")
    statuses = {stage["status"] for stage in json.loads((again / "manifest.json").read_text())["stages"]}
    assert statuses == {"reused"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sweep": {"merge.densty": [0.1]}}, "merge.densty: unknown setting; did you mean 'density'"),
        ({"sweep": {"merge.density": []}}, "write merge.<setting>"),
        ({"sweep": {"unlearn.alpha": [1, 2]}}, "nothing else is swept in one run"),
        ({"sweep": {"merge.density": [0.1, 0.1]}}, "a value is named twice"),
        ({"sweep": {"merge.method": ["linear"]}}, "an override cannot change the method"),
        ({"sweep": {"merge.density": [0, 1]}}, "greater than 0"),
    ],
)
def test_sweeps_that_make_no_sense_are_refused(two_goals: dict[str, Any], change: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        reading.parse(json.dumps({**two_goals, **change}))


def test_a_sweep_needs_both_goals_and_leaves_the_parts_alone(two_goals: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="a suite of each goal"):
        reading.parse(json.dumps({**two_goals, "evaluate": two_goals["evaluate"][:1]}))
    two_goals["evaluate"][0]["part"] = "validation"
    with pytest.raises(RecipeError, match="leave `part`"):
        reading.parse(json.dumps(two_goals))

"""Weights of a merge: the search against all ratios, shares against plain loops, and a run that fits its own."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from conftest import sentences, write_jsonl
from hypothesis import given
from hypothesis import strategies as st
from training_models import work_in

from spunge import merging
from spunge.errors import RecipeError
from spunge.evaluators import MultipleChoice
from spunge.interfaces import LoadedVariant
from spunge.mergers import Ties
from spunge.recipe.schema import Experiment
from spunge.run import fitting, pipeline
from spunge.run.weighing import choose_weights
from spunge.weights.language_model import Resident
from spunge.weights.task_vector import TaskVector


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=4), st.integers(0, 999))
def test_the_search_never_leaves_more_asks_nothing_twice_and_keeps_to_its_number(hidden: list[int], seed: int) -> None:
    names = [f"s{number}" for number in range(len(hidden))]
    drawn, asked = random.Random(seed), []

    def left(weights: Any) -> float:
        ratios = tuple(round(weight / min(weights.values()), 9) for weight in weights.values())
        assert ratios not in asked
        asked.append(ratios)
        product = 1.0
        for weight in weights.values():
            product *= weight
        assert product == pytest.approx(1.0)
        return drawn.random()

    weights, least = choose_weights(names, left, most=9)
    assert len(asked) <= 9
    drawn.seed(seed)
    values = [drawn.random() for _ in asked]
    assert least == min(values[: values.index(least) + 1]) <= values[0]
    assert tuple(round(weight / min(weights.values()), 9) for weight in weights.values()) == asked[values.index(least)]


@given(st.lists(st.integers(-3, 3), min_size=2, max_size=3))
def test_a_bowl_is_searched_to_its_bottom_as_trying_all_ratios_would(hidden: list[int]) -> None:
    names = [f"s{number}" for number in range(len(hidden))]
    goal = [2.0 ** (half / 2) for half in hidden]

    def left(weights: Any) -> float:
        # What a ratio of two weights is off its own, squared: told by ratios alone.
        values = list(weights.values())
        pairs = itertools.combinations(range(len(values)), 2)
        return round(sum(((values[a] / values[b]) / (goal[a] / goal[b]) - 1) ** 2 for a, b in pairs), 9)

    everywhere = itertools.product(range(-4, 5), repeat=len(names))
    best = min(left({n: 2.0 ** (h / 2) for n, h in zip(names, halves, strict=True)}) for halves in everywhere)
    found, least = choose_weights(names, left, most=200)
    assert best == 0
    if len(names) == 2:
        assert least == 0
        assert found["s0"] / found["s1"] == pytest.approx(goal[0] / goal[1])
    assert least <= left(dict.fromkeys(names, 1.0))


def test_shares_of_groups_are_what_plain_loops_say() -> None:
    suite = MultipleChoice.model_validate(
        {"suite": "h", "goal": "forget", "sources": [{"path": "x"}], "attributes": ["group"]}
    )
    drawn = random.Random(3)
    groups = {f"i{n}": ["a"] if n < 8 else ["a", "b"] if n < 14 else ["few"] for n in range(17)}

    def table(values: dict[str, float]) -> pl.DataFrame:
        return pl.DataFrame(
            [
                {"item": item, "attributes": json.dumps({"group": groups[item]}), "metric": "acc", "value": value}
                for item, value in values.items()
            ]
        )

    before, after = ({item: float(drawn.random() < p) for item in groups} for p in (0.9, 0.5))
    found = fitting.group_shares(table(after), table(before), suite)
    expected = {}
    for group in ("a", "b"):
        members = [item for item, its in groups.items() if group in its]
        expected[f"h: group = {group}"] = sum(after[i] for i in members) / sum(before[i] for i in members)
    assert found == pytest.approx(expected)  # of `few` there are three items
    whole = suite.model_copy(update={"attributes": ()})
    one, other = (table(values).with_columns(attributes=pl.lit("{}")) for values in (after, before))
    assert fitting.group_shares(one, other, whole) == pytest.approx({"h": sum(after.values()) / sum(before.values())})


@pytest.fixture
def fitted(world: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """The small experiment with weights to be chosen."""
    kept = write_jsonl(tmp_path / "kept.jsonl", [{"text": text} for text in sentences(40, 4)])
    gone = [{"text": text, "domain": "ab"[index % 2]} for index, text in enumerate(sentences(60, 5))]
    suite = {"suite": "gone", "method": "perplexity", "goal": "forget", "attributes": ["domain"]}
    return {
        **world,
        "evaluate": [{**suite, "sources": [{"path": str(write_jsonl(tmp_path / "gone.jsonl", gone))}]}],
        "controls": ["joint", "random_split"],
        "merge": {"method": "ties", "density": 1, "weights": "fitted"},
        "damage": {"near": [{"path": str(kept)}], "budgets": [0.05], "tokens": 64, "length": 8},
    }


def test_a_run_chooses_weights_on_items_that_it_does_not_report(fitted: dict[str, Any], tmp_path: Path) -> None:
    run = pipeline.run(Experiment.model_validate(fitted), out=tmp_path / "runs")
    manifest = json.loads((run / "manifest.json").read_text())
    assert {fit["variant"] for fit in manifest["weights"]} == {"spunge", "random_split"}
    stages = {(stage["stage"], stage["name"]): stage for stage in manifest["stages"]}
    for fit in manifest["weights"]:
        trials = fit["trials"]
        assert trials[0]["weights"] == dict.fromkeys(fit["weights"], 1.0)
        best = min(trials, key=lambda trial: (trial["worst"], trial["mean"]))
        assert fit["weights"] == best["weights"]
        assert all(trial["worst"] == pytest.approx(max(trial["left"].values())) for trial in trials)
        made = tmp_path / "runs" / "store" / "merge" / stages["merge", fit["variant"]]["key"]
        assert json.loads((made / "manifest.json").read_text())["settings"]["weights"] == fit["weights"]
        assert all(0.9 * 0.05 < trial["damage"] <= 0.05 for trial in trials)
        assert best["left"] == pytest.approx(_left(fitted, TaskVector.load(made).scaled(best["scale"]), tmp_path))
        assert len({trial["worst"] for trial in trials}) > 1
    validation = {item.id for item in _items(fitted, "validation")}
    shown = set(
        pl.read_parquet(run / "items.parquet").filter(pl.col("suite") == fitted["evaluate"][0]["suite"])["item"]
    )
    assert shown == {item.id for item in _items(fitted, "test")}
    assert not shown & validation
    page = (run / "report" / "index.html").read_text(encoding="utf-8")
    assert "What each subset counts for" in page
    again = pipeline.run(Experiment.model_validate(fitted), out=tmp_path / "runs")
    stages = json.loads((again / "manifest.json").read_text())["stages"]
    assert {stage["status"] for stage in stages} == {"reused"}


def _left(recipe: dict[str, Any], change: TaskVector, folder: Path) -> dict[str, float]:
    """What a change leaves of each answer on the validation part, by the way of an exported checkpoint's models."""
    experiment = Experiment.model_validate(recipe)
    suite = experiment.evaluate[0].model_copy(update={"part": "validation"})
    resident, tables = Resident(), []
    for vector in (change, None):
        with resident.variant(experiment.model, vector) as model:
            loaded = LoadedVariant("x", model, experiment.model.load_tokenizer(), str(vector))
            tables.append(suite.evaluate(loaded, work_in(folder / f"{change.norm}-{len(tables)}")))
    return fitting.group_shares(tables[0], tables[1], suite)


def _items(recipe: dict[str, Any], part: Any) -> Any:
    from spunge.rows.items import load_items

    suite = Experiment.model_validate(recipe).evaluate[0]
    return load_items(suite.sources, part=part)  # pyright: ignore[reportAttributeAccessIssue]


def test_a_killed_fit_goes_on_behind_its_last_trial(
    fitted: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = pipeline.run(Experiment.model_validate(fitted), out=tmp_path / "once")
    whole = json.loads((once / "manifest.json").read_text())["weights"]
    real, tried = fitting.FitWeights._try, []

    def counting(self: Any, weights: Any, *rest: Any) -> Any:
        if len(tried) == 2:
            raise KeyboardInterrupt
        tried.append(weights)
        return real(self, weights, *rest)

    monkeypatch.setattr(fitting.FitWeights, "_try", counting)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(Experiment.model_validate(fitted), out=tmp_path / "twice")
    monkeypatch.setattr(fitting.FitWeights, "_try", lambda self, *rest: tried.append(rest[0]) or real(self, *rest))
    twice = pipeline.run(Experiment.model_validate(fitted), out=tmp_path / "twice")
    assert json.loads((twice / "manifest.json").read_text())["weights"] == whole
    assert len(tried) == sum(len(fit["trials"]) for fit in whole)


def test_what_cannot_be_fitted_is_refused(fitted: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"merge\.weights: fitted compares at the same damage"):
        Experiment.model_validate({**fitted, "damage": None})
    parted = [{**fitted["evaluate"][0], "part": "validation"}]
    with pytest.raises(ValueError, match=r"merge\.weights: the validation part is what it chooses on"):
        Experiment.model_validate({**fitted, "evaluate": parted})
    with pytest.raises(RecipeError, match="weights: fitted is chosen on what models forgot, so a recipe must say it"):
        merging.merge(Ties(weights="fitted"), {"a": TaskVector({})})

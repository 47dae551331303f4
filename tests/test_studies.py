"""Every study can be run as it is written, and sums up its answers as plain loops would."""

from __future__ import annotations

import importlib
import json
import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from spunge.errors import DataError
from spunge.rows.items import suite_items

STUDIES = Path(__file__).parents[1] / "studies"
FILES = sorted(STUDIES.glob("*.yaml"))


@pytest.fixture(scope="module")
def studies():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(STUDIES)
        yield importlib.import_module("study"), importlib.import_module("summary")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_study_says_what_can_be_run(studies, file: Path) -> None:
    study = studies[0].read(file)
    assert {name for pair in study.contrasts for name in pair} <= set(study.arms)
    for arm in study.arms.values():
        recipe = studies[0].experiment_of(study, arm, studies[0].Where(None, None))
        assert recipe.damage is not None
        assert {suite.suite for suite in recipe.evaluate} == set(study.scores)


@pytest.mark.parametrize("file", sorted((STUDIES / "results").glob("*.json")), ids=lambda file: file.stem)
def test_published_results_are_of_the_study(studies, file: Path) -> None:
    study = studies[0].read(STUDIES / f"{file.stem}.yaml")
    results = json.loads(file.read_text(encoding="utf-8"))
    assert {arm["arm"] for arm in results["arms"]} == {"base", *study.arms}
    assert {tuple(contrast["arms"]) for contrast in results["contrasts"]} == set(study.contrasts)


def test_other_data_than_the_studys_are_refused(studies, tmp_path: Path) -> None:
    study = studies[0].read(STUDIES / "toxigen.yaml")
    with pytest.raises(DataError, match=r"--data: it needs toxigen/annotated_revised\.json"):
        studies[0].check(study, None)
    with pytest.raises(DataError, match=r"annotated_revised\.json: no such file"):
        studies[0].check(study, tmp_path)
    (tmp_path / "toxigen").mkdir()
    (tmp_path / "toxigen" / "annotated_revised.json").write_text("[]", encoding="utf-8")
    with pytest.raises(DataError, match="sha256 is 4f53cda18c2b"):
        studies[0].check(study, tmp_path)


class Study:
    """What `summarise` reads of a study."""

    def __init__(self, studies: Any) -> None:
        self.scores = {"texts": studies[0].Score(metric="nll", by="group", shown=["a", "b"])}
        self.contrasts = [("split", "joint")]


def test_scores_are_summed_up_as_plain_loops_would(studies) -> None:
    drawn = random.Random(0)
    groups = {"i1": ["a"], "i2": ["b"], "i3": ["a", "b"], "i4": ["c"]}
    arms = {"base": [0], "joint": [0, 1, 2], "split": [0, 1]}
    nll = {(arm, seed, item): drawn.uniform(2, 9) for arm, seeds in arms.items() for seed in seeds for item in groups}
    rows = [
        {
            "arm": arm, "seed": seed, "point": "" if arm == "base" else "near 0.1", "suite": "texts", "item": item,
            "attributes": json.dumps({"group": groups[item]}), "metric": metric, "value": value,
        }
        for (arm, seed, item), nats in nll.items() for metric, value in (("nll", nats), ("tokens", 4.0))
    ]  # fmt: skip
    drawn.shuffle(rows)
    spent = {"matching": "near", "budget": 0.1, "status": "matched", "near": 0.1, "far": None, "steps": 8, "seconds": 2}
    matches = [{"variant": "joint", "seed": seed, "scale": seed + 1.0, **spent} for seed in arms["joint"]]
    results = studies[1].summarise(pl.DataFrame(rows), matches, Study(studies))

    joint = next(arm for arm in results["arms"] if arm["arm"] == "joint")
    risen = {(s, i): (nll["joint", s, i] - nll["base", 0, i]) / 4 for s in arms["joint"] for i in groups}
    assert joint["mean"] == pytest.approx(sum(risen.values()) / len(risen), abs=1e-4)
    of_a = [value for (_, item), value in risen.items() if "a" in groups[item]]
    assert joint["by_group"]["a"] == pytest.approx(sum(of_a) / len(of_a), abs=1e-4)
    assert (joint["scale"], joint["steps"], joint["seeds"]) == (2.0, 8, [0, 1, 2])

    [contrast] = results["contrasts"]
    apart = {(s, i): (nll["split", s, i] - nll["joint", s, i]) / 4 for s in (0, 1) for i in groups}
    assert contrast["seeds"] == 2
    assert contrast["difference"] == pytest.approx(sum(apart.values()) / 8, abs=1e-4)
    by_seed = [sum(apart[s, i] for i in groups) / 4 for s in (0, 1)]
    assert contrast["by_seed"] == pytest.approx(by_seed, abs=1e-4)
    low, high = contrast["interval"]
    assert low < contrast["difference"] < high
    assert not math.isnan(contrast["detectable"])


TINY = """
description: Two steps of nothing much.
recipe: lab-toxicity
data: {}
settings:
  - unlearn.max_steps=2
  - "damage={near: [{path: 'lab:toxicity/retain.jsonl'}], budgets: [0.001], tokens: 128}"
  # Benign statements stand for what must go: they are asked in seconds.
  - >-
    evaluate=[{suite: benign, method: perplexity, goal: forget, attributes: [group], limit: 8,
    sources: [{path: 'lab:toxicity/retain.jsonl'}]}]
scores: {benign: {metric: nll, by: group, shown: [korrim]}}
seeds: [0]
arms:
  joint: {unlearned: joint}
  by people: {unlearned: subsets, settings: [merge.density=1]}
  random: {unlearned: random_split}
contrasts: [[by people, joint], [by people, random]]
"""

IN_TURN = """  in turn: {unlearned: sequential}
  in layers: {unlearned: layered}
contrasts:"""


@pytest.mark.long
def test_a_study_runs_and_goes_on_where_it_was(studies, tmp_path: Path, monkeypatch, capsys) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY.replace("contrasts:", IN_TURN), encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["study.py", str(file), "--out", str(tmp_path / "out")])
    studies[0].main()
    results = json.loads((tmp_path / "results" / "tiny.json").read_text(encoding="utf-8"))
    assert {arm["arm"] for arm in results["arms"]} == {"base", "joint", "by people", "random", "in turn", "in layers"}
    steps = {arm["arm"]: arm["steps"] for arm in results["arms"] if arm["arm"] != "base"}
    assert steps["in turn"] == steps["in layers"] == steps["by people"]  # at equal cost
    assert [contrast["seeds"] for contrast in results["contrasts"]] == [1, 1]
    assert "benign, near 0.001: by people − joint" in capsys.readouterr().out
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "store").glob("*/*/manifest.json")}
    studies[0].main()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "store").glob("*/*/manifest.json")} == made


TUNED = """
tuning: {seed: 9, suite: benign, trials: [[unlearn.learning_rate=1e-5], [unlearn.learning_rate=1e-2]]}
"""


@pytest.mark.long
def test_every_arm_is_tuned_on_other_items_and_another_seed(studies, tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "tuned.yaml"
    file.write_text(TINY.replace("limit: 8,", "limit: 80,") + TUNED, encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["study.py", str(file), "--out", str(tmp_path / "out")])
    studies[0].main()
    trials = json.loads((tmp_path / "results" / "tuned.json").read_text(encoding="utf-8"))["tuning"]
    assert [trial["arm"] for trial in trials] == ["joint"] * 2 + ["by people"] * 2 + ["random"] * 2
    for one, other in zip(trials[::2], trials[1::2], strict=True):
        [best] = [trial for trial in (one, other) if trial["chosen"]]
        assert sum(best["forgotten"].values()) == max(sum(trial["forgotten"].values()) for trial in (one, other))
    study = studies[0].read(file)
    arm = studies[0].tuned(study, trials).arms["joint"]
    assert arm.settings == next(trial["settings"] for trial in trials if trial["chosen"])
    asked = [
        studies[0].experiment_of(study, arm, studies[0].Where(None, None), part) for part in ("validation", "test")
    ]
    items = [{item.id for item in suite_items(one.evaluate[0], "text")} for one in asked]
    assert items[0]
    assert not items[0] & items[1]
    assert set(pl.read_parquet(tmp_path / "out" / "tuned" / "items-0.parquet")["item"]) == items[1]


def test_the_published_tables_are_what_the_results_say(studies) -> None:
    tables = importlib.import_module("tables")
    for page, least in zip(tables.PAGES, (4, 1), strict=True):
        text = page.read_text(encoding="utf-8")
        assert text == tables.written(text), "python studies/tables.py"
        assert len(tables.MARKED.findall(text)) >= least


def test_a_table_turns_scores_that_fall_and_marks_what_is_clear_of_zero(studies) -> None:
    tables = importlib.import_module("tables")
    spent = {"scale": 0.5, "steps": 8.0, "seeds": [0, 1]}
    arm = {"suite": "questions", "arm": "joint", "point": "near 0.1", "mean": -0.25, "by_group": {"a": -0.2, "b": 0.1}}
    trial = {"arm": "joint", "settings": ["unlearn.learning_rate=4e-3"], "chosen": True}
    results = {"arms": [{"suite": "questions", "arm": "base", "mean": 0.7}, {**arm, **spent}], "tuning": [trial]}
    assert tables.arms(results, -1, ["joint"]).splitlines()[2:] == ["| joint | 2 | 4e-3 | 0.250 | −0.100 | 0.50 | 8 |"]
    merged = {**arm, **spent, "arm": "split", "cosine": 0.125}
    told = tables.arms({"arms": [*results["arms"], merged]}, -1, ["joint", "split"]).splitlines()
    assert told[0].endswith("| λ near | steps | parts' cosine |")
    assert told[2:] == [
        "| joint | 2 | 0.250 | −0.100 | 0.50 | 8 |  |",
        "| split | 2 | 0.250 | −0.100 | 0.50 | 8 | 0.12 |",
    ]
    tried = [{**trial, "forgotten": {"near 0.1": 0.25, "far 0.1": 0.15}}]
    tried += [{**tried[0], "settings": ["unlearn.learning_rate=8e-3"], "forgotten": {"near 0.1": 0.1}, "chosen": False}]
    assert tables.trials({"tuning": tried}).splitlines() == [
        "| arm | 4e-3 | 8e-3 |",
        "|---|---|---|",
        "| joint | **0.200** | 0.100 |",
    ]
    row = {"learning_rate": 2e-3, "joint": [0.25, 0.5], "merged": [1, 0], "seconds_joint": 3.25, "seconds_subsets": 3}
    assert tables.methods({"rows": {"base": {"joint": [1, 0.99]}, "npo": row}}).splitlines()[2:] == [
        "| base |  | 1.000 | 0.990 |  |  |  |  |",
        "| npo | 0.002 | 0.250 | 0.500 | 1.000 | 0.000 | 3.2 | 3.0 |",
    ]
    contrast = {"suite": "questions", "arms": ["split", "joint"], "point": "near 0.1", "seeds": 2, "detectable": 0.03}
    told = {**contrast, "difference": -0.04, "interval": [-0.06, -0.02]}
    chance = {**contrast, "arms": ["random", "joint"], "difference": 0.01, "interval": [-0.02, 0.03]}
    assert tables.contrasts({"contrasts": [told, chance]}, -1).splitlines()[2:] == [
        "| split − joint | 2 | **+0.040 [+0.020, +0.060]** | 0.030 |",
        "| random − joint | 2 | −0.010 [−0.030, +0.020] | 0.030 |",
    ]


def test_parts_are_of_the_right_rows(studies) -> None:
    labels = importlib.import_module("labels")
    rows = [{"id": number, "target_groups": ["women", "lgbtq"][: number % 2 + 1]} for number in range(500)]
    assert {labels.tenths(row) for row in rows} == {f"part_{number}" for number in range(1, 11)}
    assert labels.tenths({"id": 1, "target_groups": ["asian"]}) is None
    assert labels.women_apart({"id": 1, "target_groups": ["women", "muslim", "lgbtq"]}) == ["women", "the four"]
    assert labels.without_women({"id": 1, "target_groups": ["women", "muslim"]}) == ["muslim"]
    said = [{"split": "split_0", "person": person, "text": text} for person in range(40) for text in "abc"]
    parts = {(row["person"], labels.people(row)) for row in said}
    assert len(parts) == 40
    assert len({part for _, part in parts}) == 3


def test_more_forgotten_is_more_whichever_way_the_score_goes(studies) -> None:
    def forgotten(metric: str, base: float, after: float) -> dict[str, float]:
        rows = [
            {"arm": arm, "seed": 0, "point": point, "suite": "texts", "item": "i1", "attributes": '{"group": "a"}'}
            | {"metric": name, "value": value}
            for arm, point, score in (("base", "", base), ("joint", "near 0.1", after))
            for name, value in ((metric, score), ("tokens", 4.0))
        ]
        return studies[1].forgotten(pl.DataFrame(rows), "texts", SimpleNamespace(metric=metric, by="group"))

    assert forgotten("nll", 4.0, 8.0) == {"near 0.1": 1.0}
    assert forgotten("p_correct", 0.75, 0.5) == {"near 0.1": 0.25}

"""An evaluator from outside the package: its own metric reaches every part of the report, its mistakes one line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from spunge.errors import DataError
from spunge.recipe.schema import Experiment
from spunge.rows.items import SCHEMA, Item, Measurement, check_items, item_table
from spunge.run import pipeline, subsets

MODULE = '''
"""How likely the model finds each word of a text, on average."""

import math
from typing import ClassVar

from spunge.interfaces import Evaluator
from spunge.metrics import Metric
from spunge.rows.items import Measurement, item_table, load_items
from spunge.rows.sources import Source


class Likeness(Evaluator):
    metrics: ClassVar = (Metric("likeness", "likeness of the words", "likeness", share=True),)

    sources: tuple[Source, ...]

    def evaluate(self, variant, work):
        import torch

        measured = []
        for item in load_items(self.sources, needs=["text"], attributes=["domain"]):
            ids = torch.tensor([variant.tokenizer.encode(item.row["text"])])
            with torch.no_grad():
                loss = variant.model(input_ids=ids, labels=ids).loss.item()
            measured.append(Measurement(item, self.suite, {"likeness": math.exp(-loss)}, {"text": item.row["text"]}))
        return item_table(self.suite, measured)


class Traceless(Likeness):
    metrics: ClassVar = ()
'''


@pytest.fixture
def outside(world: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The small experiment, whose every suite is of a class in a module of its own."""
    (tmp_path / "likeness_from_outside.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    sources = world["forget"]["sources"]
    suite = {"method": "likeness_from_outside:Likeness", "sources": sources}
    return {
        **world,
        "evaluate": [{**suite, "suite": "gone", "goal": "forget"}, {**suite, "suite": "left", "goal": "retain"}],
    }


def test_its_metric_reaches_table_figure_and_verdict(outside: dict[str, Any], tmp_path: Path) -> None:
    run = pipeline.run(Experiment.model_validate(outside), out=tmp_path / "runs")
    suites = json.loads((run / "manifest.json").read_text())["suites"]
    assert [suite["metrics"][0]["name"] for suite in suites] == ["likeness", "likeness"]
    results = json.loads((run / "report" / "results.json").read_text())
    assert {row["metric"] for row in results["comparisons"]} == {"likeness"}
    written = (run / "report" / "results.md").read_text()
    assert "gone likeness\u00a0↓" in written
    assert "left likeness\u00a0↑" in written
    assert re.search(r"On “gone”, likeness of the words", (run / "report" / "index.html").read_text())
    figures = {
        file.name.split("-")[0].removesuffix(".svg"): file.read_text()
        for file in (run / "report" / "figures").iterdir()
    }
    assert "gone likeness (%)" in figures["trade"]
    assert "gone likeness: vs joint" in figures["contest"]
    assert "gone likeness (%)" in figures["dots"]


def test_one_that_declares_no_metric_is_refused_in_one_line(outside: dict[str, Any], tmp_path: Path) -> None:
    outside["evaluate"][0]["method"] = "likeness_from_outside:Traceless"
    with pytest.raises(DataError, match="Traceless declares no metric") as caught:
        subsets.load(Experiment.model_validate(outside))
    assert "\n" not in str(caught.value)


def good() -> pl.DataFrame:
    return item_table("s", [Measurement(Item(name, "{}", {}), "s", {"acc": 1.0}, {}) for name in "ab"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda table: table.to_dicts(), "returned list, not an item table"),
        (lambda table: table.drop("text"), r"wrong: text \(String\)"),
        (lambda table: table.with_columns(value=pl.lit("high")), r"wrong: value \(Float64\)"),
        (lambda table: table.with_columns(more=pl.lit(1)), r"wrong: more \(not one of them\)"),
        (lambda table: table.with_columns(suite=pl.lit("t")), "its items are of t, and should be of s"),
        (lambda table: table.clear(), "its items are of no suite"),
        (lambda table: table.with_columns(item=pl.lit("a")), "each metric once"),
        (lambda table: table.with_columns(metric=pl.lit(None, pl.String)), "each metric once"),
        (lambda table: table.with_columns(value=pl.lit(float("nan"))), "acc is nan on 2 items"),
        (lambda table: table.with_columns(value=pl.lit(float("inf"))), "acc is inf on 2 items"),
        (lambda table: table.with_columns(attributes=pl.lit("domain")), "attributes .* JSON object"),
    ],
)
def test_a_table_that_is_none_is_refused_in_one_line_that_names_the_variant(change: Any, said: str) -> None:
    check_items(good(), "s", "Likeness on joint")
    with pytest.raises(DataError, match=said) as caught:
        check_items(change(good()), "s", "Likeness on joint")
    assert str(caught.value).startswith("Likeness on joint: ")
    assert "\n" not in str(caught.value)


def test_the_item_schema_is_what_is_checked() -> None:
    assert tuple(good().schema) == tuple(SCHEMA)

"""The verdict's sentence on simulated items: what a reader who sees nothing else takes away."""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl
import pytest
from report_runs import write_run

from spunge import report
from spunge.report.findings import Findings
from spunge.report.verdict import verdict

Shares = dict[str, tuple[float, float]]
"""Variant → the shares of right answers on what must go, and on what must stay."""

FORGOT = {"base": (0.95, 0.93), "joint": (0.50, 0.93), "joint_equal_steps": (0.50, 0.93), "random_split": (0.50, 0.93)}


def said(root: Path, shares: Shares, *, items: int = 600, seeds: tuple[int, ...] = (0,)) -> str:
    """The headline of a run in which so many answers are right, the same items first in every variant."""
    run = write_run(root, items=items, seeds=seeds)
    table = pl.read_parquet(run / "items.parquet")
    place = pl.col("item").str.slice(-6).cast(pl.Int64) * 37 % (items // 2)  # spread over the groups
    value = pl.col("value")
    for variant, both in shares.items():
        for suite, share in zip(("hazards", "general"), both, strict=True):
            mine = (pl.col("variant") == variant) & (pl.col("suite") == suite) & (pl.col("metric") == "acc")
            value = pl.when(mine).then((place < share * (items // 2)).cast(pl.Float64)).otherwise(value)
    table.with_columns(value=value).write_parquet(run / "items.parquet")
    return judged(run)


def judged(run: Path) -> str:
    return verdict(Findings(report.build(run))).headline.replace("\u00a0", " ")


def test_all_good(tmp_path: Path) -> None:
    told = said(tmp_path, {**FORGOT, "spunge": (0.27, 0.93)})
    assert re.match(r"SPUNGE forgot nearly all of what it should \(97 % \[89, 100\]\), and kept the rest\.", told)
    assert "it forgot more than joint unlearning, by 23 points [" in told
    assert "better than joint unlearning with as many steps and a random split" in told


def test_nothing_forgotten_beside_a_joint_model_that_was_destroyed(tmp_path: Path) -> None:
    told = said(tmp_path, {**FORGOT, "base": (0.624, 0.634), "spunge": (0.624, 0.634), "joint": (0.28, 0.271)})
    assert re.match(r"SPUNGE forgot nothing measurable \(at most \d+ % of what it should\), and kept the rest\.", told)
    assert "the two cannot be compared: joint unlearning damaged the model (accuracy on “general” 6" in told
    assert "forgot more" not in told
    assert "kept more" not in told


def test_a_destroyed_model_leads_every_other_sentence(tmp_path: Path) -> None:
    told = said(tmp_path, {**FORGOT, "spunge": (0.25, 0.26)})
    assert told.startswith("SPUNGE damaged the model: accuracy on “general” 93.0 → 26 %.")
    assert "cannot be compared: joint unlearning left the rest as it was, and SPUNGE did not" in told
    assert "forgot more" not in told


def test_worse_than_joint(tmp_path: Path) -> None:
    told = said(tmp_path, {**FORGOT, "spunge": (0.70, 0.93)})
    assert "joint unlearning forgot more, by 20 points [" in told
    assert "worse than joint unlearning with as many steps and a random split" in told


def test_equal_to_the_random_split(tmp_path: Path) -> None:
    told = said(tmp_path, {**FORGOT, "random_split": (0.30, 0.93), "spunge": (0.30, 0.93)})
    assert "it forgot more than joint" in told
    assert "no different from a random split" in told
    assert "What it gains need not come from the attribute." in told


def test_three_items_settle_nothing(tmp_path: Path) -> None:
    told = said(tmp_path, {**FORGOT, "spunge": (0.0, 1.0)}, items=6)
    assert told.startswith("It is not shown that SPUNGE forgot")
    assert "3 items are too few to tell" in told
    assert "better" not in told
    assert "worse" not in told


def test_a_group_that_got_worse_is_told(tmp_path: Path) -> None:
    run = write_run(tmp_path, items=600)
    items = pl.read_parquet(run / "items.parquet")
    group = pl.col("attributes").str.contains('"bio"') & (pl.col("metric") == "acc") & (pl.col("suite") == "hazards")
    value = pl.when(group & (pl.col("variant") == "base")).then(0.0).otherwise(pl.col("value"))
    value = pl.when(group & (pl.col("variant") == "spunge")).then(1.0).otherwise(value)
    items.with_columns(value=value).write_parquet(run / "items.parquet")
    assert "It made things worse for “bio”" in judged(run)
    assert "worse for “bio”" in report.card(run)


@pytest.mark.parametrize("variant", ["spunge", "joint"])
def test_nan_is_a_broken_model_and_nothing_else(tmp_path: Path, variant: str) -> None:
    run = write_run(tmp_path, items=400)
    items = pl.read_parquet(run / "items.parquet")
    spoilt = (pl.col("variant") == variant) & (pl.col("suite") == "hazards") & (pl.col("metric") == "nan")
    items.with_columns(value=pl.when(spoilt).then(1.0).otherwise(pl.col("value"))).write_parquet(run / "items.parquet")
    told = judged(run)
    name = {"spunge": "SPUNGE", "joint": "Joint unlearning"}[variant]
    assert told.startswith(f"{name} gave NaN on “hazards”: a broken model, and not one that forgot.")
    assert "forgot more than joint" not in told
    assert ("SPUNGE forgot" in told) == (variant == "joint")

"""Packs single items for the page's explorer: every text once, compressed, decoded only when it comes into view."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from spunge.report.answers import attribute_values
from spunge.report.artifacts import Run
from spunge.report.findings import Column, Findings
from spunge.report.tables import plain
from spunge.variants import label_of

ASKED = ("prompt", "question", "text")
SAID = ("completion", "generation", "answer")
LONGEST = 2_000
"""Characters of a text that the page holds; the rest is in items.parquet."""


@dataclass
class _Interner:
    texts: list[str] = field(default_factory=list)
    index: dict[str, int] = field(default_factory=dict)

    def add(self, text: str | None) -> int | None:
        if text is None:
            return None
        if text not in self.index:
            self.index[text] = len(self.texts)
            self.texts.append(text)
        return self.index[text]


@dataclass(frozen=True)
class Explorer:
    """The packed items, and whether any suite's texts may offend."""

    data: str
    offensive: bool


def pack(run: Run, findings: Findings) -> Explorer | None:
    """Packs the items of every suite with the headline score of every variant, of its first seed."""
    texts, tags = _Interner(), _Interner()
    suites = []
    for suite in run.manifest.suites:
        columns = [column for column in findings.columns if column.suite == suite.suite]
        items = run.items.filter(pl.col("suite") == suite.suite)
        if columns and len(items):
            suites.append(_suite(items, columns[0], findings, texts, tags))
    if not suites:
        return None
    content = {"suites": suites, "texts": [shortened(text) for text in texts.texts], "tags": tags.texts}
    raw = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    return Explorer(
        base64.b64encode(gzip.compress(raw, 9, mtime=0)).decode(), any(suite["offensive"] for suite in suites)
    )


def shortened(text: str) -> str:
    """Cuts a text to what the page holds, and makes characters that are none visible."""
    cut = text[:LONGEST]
    rest = f" … ({len(text):,} characters)" if len(text) > LONGEST else ""
    return "\n".join(plain(line) for line in cut.split("\n")) + rest


def _suite(
    items: pl.DataFrame, column: Column, findings: Findings, texts: _Interner, tags: _Interner
) -> dict[str, Any]:
    seed = items["seed"].drop_nulls().min()
    items = items.filter(pl.col("seed").is_null() | (pl.col("seed") == seed))
    variants = [name for name in findings.variants if name in set(items["variant"].unique())]
    index = (
        items.select("task", "item", "attributes").unique(["task", "item"], maintain_order=True).with_row_index("row")
    )
    items = items.join(index.select("row", "task", "item"), on=["task", "item"])
    asked = _texts(items, ASKED, len(index))
    scores, said = [], []
    for name in variants:
        mine = items.filter(pl.col("variant") == name)
        values = np.full(len(index), np.nan)
        found = mine.filter((pl.col("metric") == column.metric.name) & pl.col("value").is_not_null())
        values[found["row"].to_numpy()] = found["value"].to_numpy()
        scores.append([None if np.isnan(value) else _short(value) for value in values.tolist()])
        answers = _texts(mine, SAID, len(index))
        said.append([texts.add(text) for text in answers] if any(answers) else None)
    flat = {value for row in scores for value in row if value is not None}
    return {
        "name": plain(column.suite),
        "variants": [plain(label_of(name)) for name in variants],
        "higher": column.higher_is_better,
        "binary": flat <= {0, 1},
        "words": column.metric.answers,
        "offensive": findings.suites[column.suite]["offensive"],
        "asked": [texts.add(text) for text in asked],
        "tags": [[tags.add(tag) for tag in _tags(attributes)] for attributes in index["attributes"]],
        "scores": scores,
        "said": said,
    }


def _texts(items: pl.DataFrame, metrics: Sequence[str], count: int) -> list[str | None]:
    found: list[str | None] = [None] * count
    told = items.filter(pl.col("metric").is_in(metrics) & pl.col("text").is_not_null()).unique(
        "row", maintain_order=True
    )
    for row, text in told.select("row", "text").iter_rows():
        found[row] = text
    return found


def _tags(attributes: str | None) -> list[str]:
    parsed: Mapping[str, list[str]] = attribute_values(attributes)
    return [plain(f"{name}: {value}") for name, values in parsed.items() for value in values]


def _short(value: float) -> float | int:
    return int(value) if value == int(value) else round(value, 4)

"""Packs single items for the page's explorer: scores at once, texts in pieces that are decoded when they are shown.

A page is one file and asks nothing of the network, so all of it is in there from the start. What makes it slow is not
its bytes but what becomes of them: a piece stays compressed text until somebody looks at one of its items.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from spunge.report.answers import in_order, read_grids
from spunge.report.artifacts import Run
from spunge.report.findings import Column, Findings
from spunge.report.tables import plain
from spunge.rows.items import attribute_values
from spunge.variants import BASE, MERGED, label_of

PROMPTS = ("prompt", "question", "text")
ANSWERS = ("completion", "generation", "answer")
CHOICES = "choices"
"""What the choices of a question say, as a JSON list."""
LIKELIHOOD = "choice_loglikelihood:"
"""Before the number of a choice; its value is the choice's log-likelihood."""
LONGEST = 2_000
"""Characters of a text that the page holds; the rest is in items.parquet."""
PIECE = 200
"""Items whose texts are decoded together: a page of twenty from anywhere costs at most twenty of these."""
BUDGET = 8_000_000
"""Bytes of packed texts that a page takes: with more it could no longer be mailed. Those of items whose answers changed
go first; what is left out is in items.parquet, and the page says so."""
_BLOCK = 16_000
"""Items whose texts are held at once, a whole number of pieces: most of a large run's find no room on the page."""
_NO_SCORE = 255


@dataclass(frozen=True)
class Explorer:
    """The packed items, and whether any suite's texts may offend."""

    index: str
    """What is decoded first: suites, attributes and where the pieces are."""
    pieces: list[str]
    offensive: bool


@dataclass
class _Packer:
    """The pieces so far, and how many bytes the texts of the suites still to come may take."""

    left: int
    pieces: list[str] = field(default_factory=list)

    def add(self, content: bytes) -> int:
        """Packs a piece and returns its number."""
        self.pieces.append(base64.b64encode(gzip.compress(content, 6, mtime=0)).decode())
        return len(self.pieces) - 1


def pack(run: Run, findings: Findings, *, budget: int = BUDGET) -> Explorer | None:
    """Packs the items of every suite with the headline score of every variant, of its first seed.

    Args:
        run: The run.
        findings: Its results.
        budget: Bytes of packed texts.
    """
    columns: dict[str, Column] = {}
    for column in findings.columns:
        columns.setdefault(column.suite, column)
    packer = _Packer(budget)
    suites = []
    for done, column in enumerate(columns.values()):
        share = packer.left // (len(columns) - done)
        if (
            suite := _suite(run.items.filter(pl.col("suite") == column.suite), column, findings, packer, share)
        ) is not None:
            suites.append(suite)
    if not suites:
        return None
    index = _packed({"suites": suites})
    encoded = base64.b64encode(gzip.compress(index, 9, mtime=0)).decode()
    return Explorer(encoded, packer.pieces, any(suite["offensive"] for suite in suites))


def shortened(text: str) -> str:
    """Cuts a text to what the page holds, and makes characters that are none visible."""
    rest = f" … ({len(text):,} characters)" if len(text) > LONGEST else ""
    return "\n".join(plain(line) for line in text[:LONGEST].split("\n")) + rest


def _suite(
    items: pl.LazyFrame, column: Column, findings: Findings, packer: _Packer, share: int
) -> dict[str, Any] | None:
    first = items.select(pl.col("seed").min()).collect().item()
    items = items.filter(pl.col("seed").is_null() | (pl.col("seed") == first))
    measured = items.filter((pl.col("metric") == column.metric.name) & pl.col("value").is_not_null())
    seeds = dict(in_order(measured, "variant", "seed").iter_rows())
    variants = [name for name in findings.variants if name in seeds]
    index, grids = read_grids(measured, [(name, seeds[name]) for name in variants])
    if not grids:
        return None
    scores = grids[column.metric.name].astype(np.float32)
    order = _changed_first(scores, variants)
    index, scores = index[order].with_row_index("row"), scores[:, order]
    binary = bool(np.isin(scores[~np.isnan(scores)], (0.0, 1.0)).all())
    tag_sets: dict[str | None, int] = {}
    tags = np.array([tag_sets.setdefault(each, len(tag_sets)) for each in index["attributes"]], "<u4")
    return {
        "name": plain(column.suite),
        "variants": [plain(label_of(name)) for name in variants],
        "higher": column.higher_is_better,
        "binary": binary,
        "words": column.metric.answers,
        "offensive": findings.suites[column.suite]["offensive"],
        "items": len(index),
        "tagSets": [_tags(attributes) for attributes in tag_sets],
        "tags": packer.add(tags.tobytes()),
        "scores": [packer.add(_encoded(row, binary=binary)) for row in scores],
        "piece": PIECE,
        "texts": list(_add_texts(items, index.select("row", "task", "item"), variants, packer, share)),
    }


def _add_texts(
    items: pl.LazyFrame, index: pl.DataFrame, variants: Sequence[str], packer: _Packer, share: int
) -> Iterator[int]:
    """Packs the texts piece by piece until the share is spent; yields the pieces' numbers."""
    for begin in range(0, len(index), _BLOCK):
        block = index[begin : begin + _BLOCK].with_columns(pl.col("row") - begin)
        texts = _Texts(items, block, variants)
        for start in range(0, len(block), PIECE):
            number = packer.add(_packed(texts.rows(start, min(start + PIECE, len(block)))))
            size = len(packer.pieces[number])
            if size > share:
                packer.pieces.pop()
                return
            share -= size
            packer.left -= size
            yield number


class _Texts:
    """What was asked and answered on some items of a suite, in the order of its rows."""

    def __init__(self, items: pl.LazyFrame, index: pl.DataFrame, variants: Sequence[str]) -> None:
        self._items, self._index, self._variants = items, index, variants
        names = items.select(pl.col("metric").unique()).collect(engine="streaming")["metric"].to_list()
        prompts = self._read(pl.col("metric").is_in(PROMPTS)).unique("row", keep="first", maintain_order=True)
        self._prompts = self._column(prompts, "text")
        self._choices = self._column(self._read(pl.col("metric") == CHOICES).unique("row", keep="first"), "text")
        self._right = self._column(self._read((pl.col("metric") == "answer") & pl.col("value").is_not_null())
                                   .unique("row", keep="first"), "value")  # fmt: skip
        answers = self._read(pl.col("metric").is_in(ANSWERS) & pl.col("text").is_not_null())
        self._answers = [self._column(answers.filter(pl.col("variant") == name), "text") for name in variants]
        self._odds = self._read_odds(sum(name.startswith(LIKELIHOOD) for name in names))

    def rows(self, start: int, end: int) -> list[dict[str, Any]]:
        """Returns one object an item.

        `q` is what was asked, `a` what each variant wrote, `o` the choices, of which `r` is right, and `p` how probable
        each variant found each, in thousandths.
        """
        prompts, choices, right = (
            column[start:end].to_list() for column in (self._prompts, self._choices, self._right)
        )
        answers = [column[start:end].to_list() for column in self._answers]
        content = []
        for at, (prompt, options, answer) in enumerate(zip(prompts, choices, right, strict=True)):
            row: dict[str, Any] = {"q": None if prompt is None else shortened(prompt)}
            if any(written := [column[at] for column in answers]):
                row["a"] = [None if text is None else shortened(text) for text in written]
            if self._odds is not None:
                odds = self._odds[:, :, start + at]
                count = int((~np.isnan(odds)).any(axis=0).sum())
                row["p"] = [
                    None if np.isnan(one[:count]).any() else one[:count].round().astype(int).tolist() for one in odds
                ]
                row["o"] = [shortened(str(option)) for option in json.loads(options)] if options else None
                row["r"] = None if answer is None else int(answer)
            content.append(row)
        return content

    def _read(self, condition: pl.Expr) -> pl.DataFrame:
        found = self._items.filter(condition).join(self._index.lazy(), on=["task", "item"], maintain_order="left")
        return found.select("variant", "row", "value", "text").collect(engine="streaming")

    def _column(self, frame: pl.DataFrame, name: str) -> pl.Series:
        """A column in the order of the rows, null where a row has none."""
        rows = self._index.select("row")
        return rows.join(frame.unique("row", keep="first"), on="row", how="left", maintain_order="left")[name]

    def _read_odds(self, choices: int) -> np.ndarray | None:
        """The probability of each choice among the choices, in thousandths: [variants, choices, items]."""
        if not choices:
            return None
        grid = np.full((len(self._variants), choices, len(self._index)), np.nan, np.float32)
        for choice in range(choices):
            values = self._read((pl.col("metric") == f"{LIKELIHOOD}{choice}") & pl.col("value").is_not_null())
            grid[:, choice] = _grid(values, self._variants, len(self._index))
        finite = np.where(np.isnan(grid), -np.inf, grid)
        with np.errstate(invalid="ignore"):
            odds = np.exp(finite - finite.max(axis=1, keepdims=True))
            odds = 1000 * odds / odds.sum(axis=1, keepdims=True)
        return np.where(np.isnan(grid), np.nan, odds)


def _grid(values: pl.DataFrame, variants: Sequence[str], count: int) -> np.ndarray:
    """Values as [variants, items], NaN where there is none."""
    grid = np.full((len(variants), count), np.nan, np.float32)
    for number, name in enumerate(variants):
        part = values.filter(pl.col("variant") == name)
        grid[number, part["row"].to_numpy()] = part["value"].to_numpy()
    return grid


def _changed_first(scores: np.ndarray, variants: Sequence[str]) -> np.ndarray:
    """The order of the items in which those come first whose score the merged model changed most."""
    if not {BASE.name, MERGED.name} <= set(variants):
        return np.arange(scores.shape[1])
    change = np.abs(scores[variants.index(MERGED.name)] - scores[variants.index(BASE.name)])
    return np.argsort(-np.nan_to_num(change, nan=-1.0), kind="stable")


def _encoded(scores: np.ndarray, *, binary: bool) -> bytes:
    """Scores as the page's typed arrays read them: a byte where they are 0 or 1, else four."""
    if binary:
        return np.where(np.isnan(scores), _NO_SCORE, np.nan_to_num(scores)).astype(np.uint8).tobytes()
    return scores.astype("<f4").tobytes()


def _packed(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _tags(attributes: str | None) -> list[str]:
    parsed: Mapping[str, list[str]] = attribute_values(attributes)
    return [plain(f"{name}: {value}") for name, values in parsed.items() for value in values]

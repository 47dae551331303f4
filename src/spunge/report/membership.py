"""Whether one can still tell what the base model was trained on: areas under ROC curves, for each value too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from spunge.report.answers import AT, in_order, read_grids
from spunge.report.artifacts import Suite
from spunge.report.findings import Findings
from spunge.report.tables import Cell, Table, ends_of, signed
from spunge.rows.items import FAMILIARITY, MEMBER, attribute_values
from spunge.statistics import area_under_roc, true_positive_rate
from spunge.variants import BASE, ORACLE, label_of

CHANCE = 0.5
"""The area under the ROC curve of a score that tells nothing."""
FALSE_POSITIVES = 0.01
"""Of the outsiders, the share that an accuser may wrongly call members."""
_DRAWS, _SEED, _AT_ONCE = 1000, 0, 100


def leaks(suites: Sequence[Suite], items: pl.LazyFrame) -> Iterator[dict[str, Any]]:
    """Yields one row a membership suite, score, scope and variant: how well members are told from outsiders.

    `auc` is how often a member seems more familiar than an outsider, `tpr` the share of the members that one names
    while naming 1 % of the outsiders at most, `left` the share of what the base model's area has above the oracle's, or
    above chance where there is none: 1 all is left, 0 nothing. It is None where the base model itself tells nothing.
    Intervals are 95 % percentiles of a bootstrap over members, outsiders and seeds, the same draws for all variants.
    """
    for suite in suites:
        if suite.metric(FAMILIARITY) is None:
            continue
        mine = items.filter((pl.col("suite") == suite.suite) & pl.col("value").is_not_null())
        models = list(in_order(mine, "variant", "seed").iter_rows())
        index, grids = read_grids(mine, models)
        if FAMILIARITY not in grids:  # no model gave a number
            continue
        scores = grids[FAMILIARITY]
        tasks = np.array([str(task) for task in index["task"]])
        values = [attribute_values(each) for each in index["attributes"]]
        member = np.nanmax(grids[MEMBER], axis=0) > 0
        for task in dict.fromkeys(tasks.tolist()):
            of_task = tasks == task
            # A model that gave NaN on a row is broken.
            whole = [row for row in range(len(models)) if not np.isnan(scores[row, of_task]).any()]
            names = [str(models[row][0]) for row in whole]
            for attribute, value in _scopes([values[column] for column in np.flatnonzero(of_task & member)]):
                inside = np.array([attribute is None or value in each.get(attribute, ()) for each in values])
                columns = np.flatnonzero(of_task & (inside | ~member))
                about = {
                    "suite": suite.suite, "attacks": suite.attacks, "goal": suite.goal,
                    "score": task.rpartition(AT)[2], "attribute": attribute, "attribute_value": value,
                }  # fmt: skip
                told = _told(scores[whole][:, columns], member[columns], names)
                yield from ({**about, **row} for row in told)


def _scopes(members: Sequence[dict[str, list[str]]]) -> list[tuple[str | None, str | None]]:
    """All members, then every value of every attribute of theirs."""
    named = {(attribute, value) for each in members for attribute, held in each.items() for value in held}
    return [(None, None), *sorted(named)]


@dataclass(frozen=True)
class _Drawn:
    """A figure, and what it is in each draw of the bootstrap."""

    value: float
    draws: np.ndarray

    def row(self, name: str) -> dict[str, float]:
        """The figure with its interval, as a report's row has it."""
        low, high = np.percentile(self.draws, [2.5, 97.5])
        return {name: self.value, f"{name}_low": float(low), f"{name}_high": float(high)}


def _told(scores: np.ndarray, member: np.ndarray, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """One row a variant: its areas and rates, averaged over its seeds.

    Args:
        scores: [models, rows].
        member: [rows].
        names: The variant of each model.
    """
    draw = np.random.default_rng(_SEED)
    weights = draws(member, draw)
    areas: dict[str, _Drawn] = {}
    rates: dict[str, _Drawn] = {}
    for variant in dict.fromkeys(names):
        rows = [row for row, name in enumerate(names) if name == variant]
        seeds = draw.integers(len(rows), size=(_DRAWS, len(rows)))
        drawn = [resampled(scores[row], member, weights) for row in rows]
        for into, which, point in ((areas, 0, area_under_roc), (rates, 1, _rate)):
            each = np.stack([one[which] for one in drawn])
            value = float(np.mean([point(scores[row], member) for row in rows]))
            into[variant] = _Drawn(value, np.take_along_axis(each.T, seeds, axis=1).mean(axis=1))
    base = areas.get(BASE.name)
    floor = areas.get(ORACLE.name, _Drawn(CHANCE, np.full(_DRAWS, CHANCE)))
    tells = base is not None and np.percentile(base.draws - floor.draws, 2.5) > 0
    for variant, area in areas.items():
        left: dict[str, float | None] = {"left": None, "left_low": None, "left_high": None}
        if base is not None and tells and variant not in (BASE.name, ORACLE.name):
            above = base.draws - floor.draws
            share = (area.value - floor.value) / (base.value - floor.value)
            left = {**_Drawn(share, (area.draws - floor.draws) / np.where(above == 0, np.nan, above)).row("left")}
        yield {
            "variant": variant, **area.row("auc"), **rates[variant].row("tpr"), **left,
            "members": int(member.sum()), "outsiders": int((~member).sum()),
        }  # fmt: skip


def _rate(scores: np.ndarray, member: np.ndarray) -> float:
    return true_positive_rate(scores, member, FALSE_POSITIVES)


def draws(member: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Returns how often each row is drawn, [draws, rows]: as many members and as many outsiders as there are."""
    weights = np.zeros((_DRAWS, len(member)), dtype=np.float32)
    for kind in (member, ~member):
        count = int(kind.sum())
        weights[:, kind] = draw.multinomial(count, np.full(count, 1 / count), size=_DRAWS)
    return weights


def resampled(scores: np.ndarray, member: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the area under the ROC curve and the rate of true positives in each draw.

    Args:
        scores: [rows].
        member: [rows].
        weights: [draws, rows], how often each row was drawn; see `draws`.
    """
    outsiders = np.flatnonzero(~member)[np.argsort(scores[~member], kind="stable")]
    below = np.searchsorted(scores[outsiders], scores[member], side="left")
    not_above = np.searchsorted(scores[outsiders], scores[member], side="right")
    allowed = int(FALSE_POSITIVES * len(outsiders))
    areas, rates = [], []
    for some in np.array_split(weights, max(1, len(weights) // _AT_ONCE)):
        drawn = some[:, member]
        count = np.concatenate([np.zeros((len(some), 1)), np.cumsum(some[:, outsiders], axis=1)], axis=1)
        areas.append((drawn * (count[:, below] + count[:, not_above])).sum(axis=1) / (2 * drawn.sum(1) * count[:, -1]))
        named = count[:, -1:] - count[:, below] <= allowed + 1e-9
        rates.append((drawn * named).sum(axis=1) / drawn.sum(axis=1))
    return np.concatenate(areas), np.concatenate(rates)


def table(findings: Findings) -> Table:
    """How well each score tells members from outsiders, of every variant, and by the value that was split by."""
    split_by, cells = findings.results["split"]["attribute"], list[list[Cell]]()
    for row in findings.results.get("membership", ()):
        if row["variant"] not in findings.main_variants or row["attribute"] not in (None, split_by):
            continue
        where = " · ".join(name for name in (row["attacks"], row["attribute_value"]) if name)
        left = Cell("—") if row["left"] is None else _cell(row, "left")
        cells.append([
            Cell(row["score"].replace("_", " ")), Cell(where), Cell(label_of(row["variant"])),
            _cell(row, "auc"), _cell(row, "tpr"), left, Cell(f"{row['members']}, {row['outsiders']}"),
        ])  # fmt: skip
    note = (
        "How often a row that the base model was trained on seems more familiar than one that it never read, in % (50: "
        "nothing is told); the share of such rows that one can name while naming 1 % of the others at most; and what "
        "is left of what the base model gives away. — where the base model itself gives nothing away."
    )
    header = ["Score", "On", "Model", "AUC", "TPR at 1 % FPR", "Left", "Rows, others"]
    return Table("membership", "Whether one can tell what was read", note, header, cells)


def _cell(row: dict[str, Any], name: str) -> Cell:
    ends = ends_of(row, name) or (row[name], row[name])
    text, *written = (signed(100 * each, 0).lstrip("+") for each in (row[name], *ends))
    return Cell(f"{text} %", row[name], *ends, f"[{', '.join(written)}]")

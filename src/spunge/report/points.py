"""A point of the verdict: what one comparison says in a sentence, and how its figures are written."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from spunge.report.findings import Column, Findings, improvement
from spunge.report.rows import Comparison
from spunge.report.tables import decimals, level, signed
from spunge.variants import MERGED, label_of

MARGIN = 0.05
"""How much of the base model's score on what must stay may go before it is called lost, and how far apart two variants
may be and still be called no different."""


GOOD, BAD, UNSURE = "good", "bad", "unsure"


T = TypeVar("T")


@dataclass(frozen=True)
class Point:
    """One sentence of the verdict: whether it speaks for the method, what it says, and the figures behind it."""

    status: str
    text: str
    figures: str = ""


def where(column: Column) -> str:
    """Returns where a column was measured, in words."""
    return f"“{column.name}”"


def present(values: Iterable[T | None]) -> list[T]:
    """Leaves out what is not there."""
    return [value for value in values if value is not None]


def status_of(row: Comparison, column: Column) -> str:
    """Returns what a comparison says for SPUNGE: a difference that does not stand says nothing."""
    return {1: GOOD, 0: UNSURE, -1: BAD}[improvement(row, column)]


def worst_of(points: Iterable[Point]) -> str | None:
    """Returns the worst status of several points; None of no points."""
    statuses = {point.status for point in points}
    return next((status for status in (BAD, UNSURE, GOOD) if status in statuses), None)


def two_scores(findings: Findings, column: Column, rival: str, one: str = MERGED.name) -> str:
    """Writes what a rival and SPUNGE, or another variant, score."""
    unit = " %" if column.share else ""
    theirs, ours = (level(findings.score(name, column), column).text for name in (rival, one))
    return f"{label_of(rival)} {theirs}{unit}, {label_of(one)} {ours}{unit}"


def difference(row: Comparison, column: Column) -> str:
    """Writes a difference as tables have it, SPUNGE minus the other, with interval, p and items."""
    return f"difference {_apart(row, column, 1, '', signed)}"


def lead(row: Comparison, column: Column) -> str:
    """Writes by how much SPUNGE is ahead or behind, the interval in the direction of that word."""
    sign = 1 if row.difference >= 0 else -1
    word = "level" if row.difference == 0 else "ahead" if (sign > 0) == column.higher_is_better else "behind"
    unit = "" if column.share else f" in {column.metric.in_words}"
    return f"{word} by {_apart(row, column, sign, unit, with_digits)}".replace("level by", "level at")


def _apart(row: Comparison, column: Column, sign: int, unit: str, write: Callable[[float, int], str]) -> str:
    factor, unit = (100 * sign, " points") if column.share else (sign, unit)
    ends = None if row.ends is None else tuple(sorted(factor * end for end in row.ends))
    digits = decimals(*ends) if ends else 1
    text = f"{write(row.difference * factor, digits)}{unit}"
    text += f" [{', '.join(write(end, digits) for end in ends)}]" if ends else ""
    if row.p is not None:
        text += ", p < 0.001" if row.p < 0.001 else f", p = {row.p:.3f}"
    return f"{text}, n = {counted(row)}"


def distance(row: Comparison, column: Column) -> str:
    """A difference without its sign, for a sentence that says who is ahead."""
    factor, unit = (100, " points") if column.share else (1, f" of {column.metric.in_words}")
    if row.ends is None:
        return f"{abs(row.difference) * factor:.0f}{unit}"
    low, high = sorted(abs(end) for end in row.ends) if row.stands else row.ends
    digits = decimals(low * factor, high * factor)
    ends = f"[{with_digits(low * factor, digits)}, {with_digits(high * factor, digits)}]"
    return f"{with_digits(abs(row.difference) * factor, digits)}{unit} {ends}"


def counted(row: Comparison) -> str:
    """Writes of how many items, clusters and seeds a comparison is."""
    clusters = f" in {row.clusters} clusters" if row.clusters else ""
    return f"{row.n}{clusters} × {row.seeds} seeds" if row.seeds > 1 else f"{row.n}{clusters}"


def rounded(count: int) -> str:
    """A number of items to two digits: it is only about so many."""
    power = 10 ** max(0, len(str(count)) - 2)
    return f"{-(-count // power) * power:,}"


def with_digits(value: float, digits: int) -> str:
    """Writes a number with a minus sign that is one."""
    return f"{value:.{digits}f}".replace("-", "−")


def tied(figures: str) -> str:
    """Keeps a number and its unit on one line."""
    for pair in (" %", " points", "p = ", "p < ", "n = "):
        figures = figures.replace(pair, pair.replace(" ", "\u00a0"))
    return figures

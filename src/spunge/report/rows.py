"""The typed rows of `results.json`: what a variant scored, and how far two variants are apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import isnan, nan
from typing import Any

Ends = tuple[float, float]
"""The low and the high end of a 95 % interval."""


@dataclass(frozen=True)
class Score:
    """What a variant scored on a suite, one of its tasks, or the items with one value of an attribute."""

    variant: str
    seed: int | None
    """None where it is of all seeds together."""
    suite: str
    task: str | None
    attribute: str | None
    attribute_value: str | None
    metric: str
    value: float
    """NaN where nothing could be measured, as on a model that answers with NaN; null in the file."""
    low: float | None
    high: float | None
    n: int
    """Items."""

    @property
    def ends(self) -> Ends | None:
        """The interval; None where there is none."""
        return _ends(self.low, self.high)


@dataclass(frozen=True)
class Comparison:
    """The difference a − b of two variants, paired item by item; relative to b."""

    a: str
    b: str
    suite: str
    task: str | None
    metric: str
    difference: float
    """NaN, null in the file, where the two have no item in common."""
    low: float | None
    high: float | None
    relative: float | None
    relative_low: float | None
    relative_high: float | None
    p: float | None
    n: int
    attribute: str | None = None
    attribute_value: str | None = None
    q: float | None = None
    """p after correction over the values of the attribute."""

    @property
    def ends(self) -> Ends | None:
        """The interval; None where there is none."""
        return _ends(self.low, self.high)

    @property
    def relative_ends(self) -> Ends | None:
        """That of the relative difference."""
        return _ends(self.relative_low, self.relative_high)


def _ends(low: float | None, high: float | None) -> Ends | None:
    return None if low is None or high is None else (low, high)


def written(row: Score | Comparison) -> dict[str, Any]:
    """Returns a row as JSON values; one that is of no attribute leaves out what only those have."""
    values = {field.name: getattr(row, field.name) for field in fields(row)}
    if isinstance(row, Comparison) and row.attribute is None:
        values = {name: values[name] for name in values if name not in ("attribute", "attribute_value", "q")}
    return {name: None if isinstance(value, float) and isnan(value) else value for name, value in values.items()}


def read_score(row: Mapping[str, Any]) -> Score:
    """Reads what `written` returned."""
    return Score(**{**row, "value": nan if row["value"] is None else row["value"]})


def read_comparison(row: Mapping[str, Any]) -> Comparison:
    """Reads what `written` returned."""
    return Comparison(**{**row, "difference": nan if row["difference"] is None else row["difference"]})

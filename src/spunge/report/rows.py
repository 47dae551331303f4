"""The typed rows of `results.json`: what a variant scored, and how far two variants are apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import isnan, nan
from typing import Any

from spunge.statistics import Spread

Ends = tuple[float, float]
"""The low and the high end of a 95 % interval."""

MANY_TASKS = 6
"""With more tasks than this a suite has one column."""


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
    """Items."""
    attribute: str | None = None
    attribute_value: str | None = None
    q: float | None = None
    """p after correction over what is told together with it."""
    stands: bool = False
    """Whether the difference stands after that correction: the interval then leaves out 0, and only then."""
    seeds: int = 1
    clusters: int | None = None
    """How many templates, authors or articles the items came from, where those were sampled."""
    unit_variance: float | None = None
    """What the choice of items, or clusters, contributes to the difference's variance."""
    seed_variance: float | None = None
    """What the seeds do."""

    @property
    def ends(self) -> Ends | None:
        """The interval; None where there is none."""
        return _ends(self.low, self.high)

    @property
    def spread(self) -> Spread | None:
        """What its items and seeds contribute to its variance; None of too few to tell."""
        if self.unit_variance is None or self.seed_variance is None:
            return None
        return Spread(self.n, self.clusters, self.seeds, self.unit_variance, self.seed_variance)

    @property
    def relative_ends(self) -> Ends | None:
        """That of the relative difference."""
        return _ends(self.relative_low, self.relative_high)


def judged_tasks(tasks: Sequence[str | None], goal: str) -> Sequence[str | None]:
    """Returns the tasks of a suite that tables and verdict take one by one, the whole suite first in `tasks`.

    What must go is judged task by task where there are a few; else the suite as a whole.
    """
    apart = 2 < len(tasks) <= MANY_TASKS + 1 and goal == "forget"
    return tasks[1:] if apart else tasks[:1]


def _ends(low: float | None, high: float | None) -> Ends | None:
    return None if low is None or high is None else (low, high)


def written(row: Score | Comparison) -> dict[str, Any]:
    """Returns a row as JSON values; a comparison that is of no attribute leaves out which."""
    values = {field.name: getattr(row, field.name) for field in fields(row)}
    if isinstance(row, Comparison) and row.attribute is None:
        values = {name: values[name] for name in values if name not in ("attribute", "attribute_value")}
    return {name: None if isinstance(value, float) and isnan(value) else value for name, value in values.items()}


def read_score(row: Mapping[str, Any]) -> Score:
    """Reads what `written` returned."""
    return Score(**{**row, "value": nan if row["value"] is None else row["value"]})


def read_comparison(row: Mapping[str, Any]) -> Comparison:
    """Reads what `written` returned."""
    return Comparison(**{**row, "difference": nan if row["difference"] is None else row["difference"]})

"""Other labels for ToxiGen's rows, as functions that a study's recipe splits by: some wrong, some one too many."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from spunge.rows.groups import toxigen_group

GROUPS = ("mexican", "women", "muslim", "lgbtq", "physical_disability")


def right(row: Mapping[str, Any]) -> list[str]:
    """The row's groups among the study's five."""
    return [group for group in map(toxigen_group, row["target_groups"]) if group in GROUPS]


def wrong_10(row: Mapping[str, Any]) -> list[str]:
    """The row's groups, of every tenth row drawn another group for each."""
    return _wrong(row, 0.1)


def wrong_30(row: Mapping[str, Any]) -> list[str]:
    """The row's groups, of three rows of ten another group for each."""
    return _wrong(row, 0.3)


def overlapping(row: Mapping[str, Any]) -> list[str]:
    """The row's groups, and for three rows of ten another group beside them."""
    drawn, groups = random.Random(row["id"]), right(row)
    if not groups or drawn.random() >= 0.3:
        return groups
    return [*groups, drawn.choice([group for group in GROUPS if group not in groups])]


def women_apart(row: Mapping[str, Any]) -> list[str]:
    """Sentences about women as a subset beside all others: what was unlearned at once before women were added."""
    return list(dict.fromkeys("women" if group == "women" else "the four" for group in right(row)))


def without_women(row: Mapping[str, Any]) -> list[str]:
    """The row's groups but women."""
    return [group for group in right(row) if group != "women"]


def halves(row: Mapping[str, Any]) -> str | None:
    """One of two parts, drawn at random."""
    return _part(row, 2)


def tenths(row: Mapping[str, Any]) -> str | None:
    """One of ten parts, drawn at random."""
    return _part(row, 10)


def twentieths(row: Mapping[str, Any]) -> str | None:
    """One of twenty parts, drawn at random."""
    return _part(row, 20)


def _part(row: Mapping[str, Any], parts: int) -> str | None:
    return f"part_{random.Random(row['id']).randrange(parts) + 1}" if right(row) else None


def _wrong(row: Mapping[str, Any], share: float) -> list[str]:
    # By the row's number: the same rows whatever the seed, and those of a smaller share among those of a larger.
    drawn, groups = random.Random(row["id"]), right(row)
    if drawn.random() >= share:
        return groups
    return [drawn.choice([other for other in GROUPS if other != group]) for group in groups]

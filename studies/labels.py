"""Other subsets of the studies' rows, as functions a recipe splits by: groups apart, and random parts."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from spunge.rows.groups import toxigen_group

GROUPS = ("mexican", "women", "muslim", "lgbtq", "physical_disability")


def right(row: Mapping[str, Any]) -> list[str]:
    """The row's groups among the study's five."""
    return [group for group in map(toxigen_group, row["target_groups"]) if group in GROUPS]


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


def people(row: Mapping[str, Any]) -> str:
    """One of three parts of the birthdays, drawn at random for each person: all that is said of one stays together."""
    person = f"{row['split']} {row['person']}"
    return f"part_{random.Random(person).randrange(3) + 1}"


def _part(row: Mapping[str, Any], parts: int) -> str | None:
    return f"part_{random.Random(row['id']).randrange(parts) + 1}" if right(row) else None

"""The settings in which compared runs differ: a difference between two pages is one of these, or of chance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from spunge.report.findings import Findings
from spunge.report.glance import read_recipe
from spunge.report.tables import Cell, Table

_SEPARATOR = "\n---\n"
"""Between the recipes of the runs that are compared."""
_ABSENT = "—"


def tables(findings: Findings) -> list[Table]:
    """Returns the table of what differs, in a list that is empty of a single run, or where no recipe can be read."""
    recipes = findings.results["provenance"]["recipe"].split(_SEPARATOR)
    if len(recipes) < 2 or len(recipes) != len(findings.runs):
        return []
    settings = [dict(_flat(read_recipe(recipe))) for recipe in recipes]
    names = [name for name in dict.fromkeys(name for one in settings for name in one) if name != "name"]
    rows = [(name, [one.get(name, _ABSENT) for one in settings]) for name in names]
    cells = [[Cell(name), *map(Cell, values)] for name, values in rows if len(set(values)) > 1]
    note = "All other settings of the recipes are the same."
    if not cells:
        cells, note = [[Cell("none"), *[Cell(_ABSENT)] * len(recipes)]], "The recipes are the same but for their names."
    return [Table("settings", "Settings that differ", note, ["Setting", *findings.runs], cells)]


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yields every setting by its dotted path, a list's parts by their number."""
    parts = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
    if parts is None:
        yield path, "null" if value is None else str(value)
        return
    for name, part in parts:
        yield from _flat(part, f"{path}.{name}" if path else str(name))

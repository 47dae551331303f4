"""Splits by the value of a column: the demographic group, the scientific domain, the author."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator

from spunge.errors import DataError
from spunge.interfaces import Splitter, Work
from spunge.rows.groups import toxigen_group
from spunge.rows.sources import Corpus

if TYPE_CHECKING:
    from spunge.weights.language_model import LanguageModel

_NULL_SUBSET = "null"
Value = Annotated[str, BeforeValidator(lambda value: _text(value) if isinstance(value, int | float) else value)]
"""A value of the attribute; numbers and truth values are compared as text."""


class ByColumn(Splitter):
    """Subsets are the values of a column, grouped and renamed by `values`; a row may carry several (a list)."""

    by: Literal["column"] = "column"
    column: str
    """The column that holds the attribute."""
    read_as: Literal["toxigen_group"] | None = None
    """How to read it: `toxigen_group` makes ToxiGen's many spellings of a group one, and refuses an unknown one."""
    values: dict[str, Value | list[Value]] | None = None
    """Subset name → the value or values it takes; null: every value is a subset of its own name."""
    others: Literal["drop", "own", "error"] = "drop"
    """What becomes of a value that `values` does not name."""
    several: Literal["every", "first", "drop", "error"] = "every"
    """Where a row with several values goes."""
    null: Literal["error", "drop", "own"] = "error"
    """What becomes of a row without a value; `own` puts it into a subset named `null`."""

    @property
    def declared(self) -> tuple[str, ...]:
        """The subsets that there must be, rows or not."""
        return tuple(self.values or ())

    def split(self, forget: Corpus, base: LanguageModel, work: Work) -> list[tuple[str, ...]]:
        """Returns each row's subset names.

        Raises:
            DataError: The column is missing, `values` names a value that no row has, or a policy says error.
        """
        if self.column not in forget.rows.columns:
            raise DataError(f"split.column: no column {self.column!r}; columns are {', '.join(forget.rows.columns)}")
        cells = [_hashable(cell) for cell in forget.rows[self.column].to_list()]
        # A million rows hold a handful of different cells: each is read once, by the first row that has it.
        first: dict[Any, int] = {}
        for number, cell in enumerate(cells, 1):
            first.setdefault(cell, number)
        values = {cell: [self._read(value) for value in values_of(cell)] for cell in first}
        self._check_present(sorted({value for cell in values.values() for value in cell}))
        subsets = {cell: self._subsets(number, values[cell]) for cell, number in first.items()}
        return [subsets[cell] for cell in cells]

    def _read(self, value: str) -> str:
        return toxigen_group(value) if self.read_as == "toxigen_group" else value

    def _check_present(self, present: list[str]) -> None:
        for subset, wanted in (self.values or {}).items():
            for value in [wanted] if isinstance(wanted, str) else wanted:
                if value not in present:
                    names = ", ".join(map(repr, present[:20])) + (" …" if len(present) > 20 else "")
                    raise DataError(
                        f"split.values.{subset}: no row has {value!r} in column {self.column!r}; its values are {names}"
                    )

    def _subsets(self, number: int, cell: list[str]) -> tuple[str, ...]:
        if not cell:
            if self.null == "error":
                raise DataError(f"row {number} has no {self.column!r}: set split.null to drop or own, or fill it in")
            return (_NULL_SUBSET,) if self.null == "own" else ()
        names = dict.fromkeys(name for value in cell for name in self._subsets_of_value(number, value))
        if len(names) > 1:
            if self.several == "error":
                raise DataError(f"row {number} has several values of {self.column!r}: set split.several")
            if self.several == "drop":
                return ()
            if self.several == "first":
                return (next(iter(names)),)
        return tuple(names)

    def _subsets_of_value(self, number: int, value: str) -> list[str]:
        if self.values is None:
            return [value]
        names = [subset for subset, wanted in self.values.items() if value == wanted or value in _as_list(wanted)]
        if names or self.others == "drop":
            return names
        if self.others == "own":
            return [value]
        raise DataError(f"row {number} has {value!r} in {self.column!r}, which split.values does not name")


def _hashable(cell: Any) -> Any:
    if isinstance(cell, list):
        return tuple(map(_hashable, cell))
    return _text(cell) if isinstance(cell, dict) else cell


def _as_list(wanted: str | list[str]) -> list[str]:
    return [] if isinstance(wanted, str) else wanted


def values_of(cell: Any) -> list[str]:
    """A cell as the list of its values; text that is a JSON list counts as one, as CSV files hold them."""
    if cell is None or cell == "":
        return []
    if isinstance(cell, str) and cell.startswith("[") and cell.endswith("]"):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            return [cell]
    if isinstance(cell, list | tuple):
        return [value for part in cell for value in values_of(part)]
    return [_text(cell)]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)

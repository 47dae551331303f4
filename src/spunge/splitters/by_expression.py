"""Splits by polars SQL expressions over the columns: ranges, combinations, anything a WHERE clause can say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from spunge.errors import DataError
from spunge.interfaces import Splitter, Work
from spunge.rows.sources import Corpus

if TYPE_CHECKING:
    from spunge.weights.language_model import LanguageModel


class ByExpression(Splitter):
    """One subset an expression; a row belongs to every subset whose expression is true for it."""

    by: Literal["expression"] = "expression"
    subsets: dict[str, str]
    """Subset name → a polars SQL expression, such as `{early: "author_index < 10"}`."""
    several: Literal["every", "first", "drop", "error"] = "every"
    """Where a row goes for which several expressions are true."""

    @property
    def declared(self) -> tuple[str, ...]:
        """The subsets that there must be, rows or not."""
        return tuple(self.subsets)

    def split(self, forget: Corpus, base: LanguageModel, work: Work) -> list[tuple[str, ...]]:
        """Returns each row's subset names.

        Raises:
            DataError: An expression cannot be evaluated, or a row is in several subsets and `several` is error.
        """
        masks = {
            name: forget.mask(expression, label=f"split.subsets.{name}") for name, expression in self.subsets.items()
        }
        rows = [tuple(name for name, mask in masks.items() if mask[index]) for index in range(len(forget))]
        return [self._resolve(number, names) for number, names in enumerate(rows, 1)]

    def _resolve(self, number: int, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(names) < 2 or self.several == "every":
            return names
        if self.several == "error":
            raise DataError(f"row {number} is in several subsets ({', '.join(names)}): set split.several")
        return names[:1] if self.several == "first" else ()

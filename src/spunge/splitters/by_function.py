"""Splits by a Python function of one's own, for whatever no column or expression says."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator

from spunge import outside
from spunge.errors import DataError
from spunge.interfaces import Splitter, Work
from spunge.rows.sources import Corpus

if TYPE_CHECKING:
    from spunge.weights.language_model import LanguageModel


class ByFunction(Splitter):
    """Subsets are what a function says of each row: a name, a list of names, or None for no subset."""

    by: Literal["function"] = "function"
    function: str
    """`package.module:function`, called with each row as a dictionary. Its code runs: see docs/reliability.md."""

    @field_validator("function")
    @classmethod
    def _can_be_imported(cls, function: str) -> str:
        _import(function)
        return function

    @property
    def source(self) -> str:
        """The digest of the function's module: its result is kept as long as that stays the same."""
        function = _import(self.function)
        return hashlib.sha256(inspect.getsource(inspect.getmodule(function) or function).encode()).hexdigest()

    def split(self, forget: Corpus, base: LanguageModel, work: Work) -> list[tuple[str, ...]]:
        """Returns each row's subset names.

        Raises:
            DataError: The function says something that is no name, or fails.
        """
        function = _import(self.function)
        return [self._names(function, number, row) for number, row in enumerate(forget.rows.iter_rows(named=True), 1)]

    def _names(
        self, function: Callable[[Mapping[str, Any]], Any], number: int, row: Mapping[str, Any]
    ) -> tuple[str, ...]:
        try:
            value = function(row)
        except Exception as error:  # another's code may raise anything
            raise DataError(f"{self.function} fails on row {number}: {type(error).__name__}: {error}") from error
        names = value if isinstance(value, list | tuple) else () if value is None else (value,)
        if not all(isinstance(name, str) for name in names):
            raise DataError(f"{self.function} says {value!r} of row {number}: return a name, a list of names, or None")
        return tuple(dict.fromkeys(names))


def _import(path: str) -> Callable[[Mapping[str, Any]], Any]:
    function = outside.load(path)
    if not callable(function):
        raise ValueError(f"{path!r} is no function")
    return function

"""Splits by a Python function of one's own, for whatever no column or expression says."""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator

from spunge.errors import DataError
from spunge.interfaces import Splitter, Work
from spunge.rows.sources import Corpus

if TYPE_CHECKING:
    from spunge.weights.language_model import LanguageModel


class ByFunction(Splitter):
    """Subsets are what a function says of each row: a name, a list of names, or None for no subset."""

    by: Literal["function"] = "function"
    function: str
    """`package.module:function`, called with each row as a dictionary. Its code runs, as any import does."""

    @field_validator("function")
    @classmethod
    def _can_be_imported(cls, named: str) -> str:
        _find(named)
        return named

    @property
    def source(self) -> str:
        """The digest of the function's module: its result is kept as long as that stays the same."""
        module = inspect.getsource(inspect.getmodule(_find(self.function)) or _find(self.function))
        return hashlib.sha256(module.encode()).hexdigest()

    def split(self, forget: Corpus, base: LanguageModel, work: Work) -> list[tuple[str, ...]]:
        """Returns each row's subset names.

        Raises:
            DataError: The function says something that is no name, or fails.
        """
        function = _find(self.function)
        return [self._names(function, number, row) for number, row in enumerate(forget.rows.iter_rows(named=True), 1)]

    def _names(
        self, function: Callable[[Mapping[str, Any]], Any], number: int, row: Mapping[str, Any]
    ) -> tuple[str, ...]:
        try:
            said = function(row)
        except Exception as error:  # another's code may raise anything
            raise DataError(f"{self.function} fails on row {number}: {type(error).__name__}: {error}") from error
        names = (
            ()
            if said is None
            else (said,)
            if isinstance(said, str)
            else tuple(said)
            if isinstance(said, list | tuple)
            else None
        )
        if names is None or not all(isinstance(name, str) for name in names):
            raise DataError(f"{self.function} says {said!r} of row {number}: return a name, a list of names, or None")
        return tuple(dict.fromkeys(names))


def _find(named: str) -> Callable[[Mapping[str, Any]], Any]:
    module, _, name = named.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{named!r} cannot be imported as module:function: {error}") from error
    if not callable(found):
        raise ValueError(f"{named!r} is no function")
    return found

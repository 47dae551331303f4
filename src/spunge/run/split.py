"""The stage that says which rows of the forget set belong to which subset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from spunge.errors import DataError
from spunge.interfaces import Forecast, Splitter, Work
from spunge.rows.sources import Corpus
from spunge.run.identity import identity
from spunge.run.keys import derived_seed, key
from spunge.run.variant import Base
from spunge.splitters import ByFunction, Relabelled

_SPLITS: dict[str, dict[str, list[int]]] = {}
"""Key of a split → subset name → row indices, of every split of this process: a plan has to make it, a run makes it."""


@dataclass(frozen=True, eq=False)
class Split:
    """The task that says which rows belong to which subset."""

    splitter: Splitter
    forget: Corpus
    base: Base
    seed: int
    stage = "split"

    @property
    def name(self) -> str:
        """How the rows are split."""
        return type(self.splitter).__name__

    @property
    def inputs(self) -> Mapping[str, Any]:
        """The rows and the way to split them; the seed, the base model and a function's code where it asks them."""
        splitter = self.splitter
        asked = splitter.of if isinstance(splitter, Relabelled) else splitter
        return {
            "splitter": identity(splitter),
            "rows": self.forget.full_fingerprint,
            **({"seed": self.seed} if splitter.seeded else {}),
            **({"base": self.base.identity} if splitter.asks_base else {}),
            **({"source": asked.source} if isinstance(asked, ByFunction) else {}),
        }

    def forecast(self, work: Work, earlier: Mapping[str, Forecast]) -> Forecast:
        """Says what splitting takes."""
        return self.splitter.forecast(self.forget, self.base.model)

    def names(self, work: Work) -> dict[str, list[int]]:
        """Returns subset name → row indices, in order of the rows; found once in a process, however often asked for."""
        name = key(self.stage, self.inputs)
        if name not in _SPLITS:
            _SPLITS[name] = self._names(work)
        return _SPLITS[name]

    def __getstate__(self) -> dict[str, Any]:
        """Takes along what is remembered here, so that a worker need not ask a model again that a plan asked."""
        return {**self.__dict__, "_known": _SPLITS.get(key(self.stage, self.inputs))}

    def __setstate__(self, state: dict[str, Any]) -> None:
        known = state.pop("_known")
        self.__dict__.update(state)
        if known is not None:
            _SPLITS[key(self.stage, self.inputs)] = known

    def _names(self, work: Work) -> dict[str, list[int]]:
        work = replace(work, seed=derived_seed(self.seed, "split", self.name))
        subsets: dict[str, list[int]] = {name: [] for name in getattr(self.splitter, "declared", ())}
        rows = self.splitter.split(self.forget, self.base.model, work)
        self._check(rows)
        for index, names in enumerate(rows):
            for name in names:
                subsets.setdefault(name, []).append(index)
        return subsets

    def _check(self, rows: list[tuple[str, ...]]) -> None:
        """Refuses what a splitter from outside may well return: a string is a sequence of strings too."""
        what = f"{self.name}: `split` returned"
        if len(rows) != len(self.forget):
            raise DataError(
                f"{what} {len(rows)} rows' subsets for {len(self.forget)} rows: return a tuple of names for every row, "
                "() for one in no subset"
            )
        for number, names in enumerate(rows, 1):
            if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
                raise DataError(f"{what} {names!r} for row {number}: return a tuple of names, such as ('short',)")

    def make(self, work: Work) -> Mapping[str, Any]:
        """Notes the subsets in the manifest."""
        return {"subsets": self.names(work)}

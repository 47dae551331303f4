"""Another split with some of its labels wrong, or some of its rows in several subsets: how much hangs on the labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from spunge.interfaces import Forecast, Splitter, Work
from spunge.rows.sources import Corpus
from spunge.splitters.at_random import AtRandom
from spunge.splitters.by_classifier import ByClassifier
from spunge.splitters.by_cluster import ByCluster
from spunge.splitters.by_column import ByColumn
from spunge.splitters.by_expression import ByExpression
from spunge.splitters.by_function import ByFunction
from spunge.splitters.by_gradient import ByGradient

if TYPE_CHECKING:
    from spunge.weights.language_model import LanguageModel


class Relabelled(Splitter):
    """The subsets of another split, of which a share is mixed up or shared. A control: draws from the task's seed."""

    seeded: ClassVar[bool] = True
    comparable: ClassVar[bool] = False

    by: Literal["relabelled"] = "relabelled"
    of: Annotated[
        ByColumn | ByExpression | ByClassifier | ByCluster | ByGradient | ByFunction | AtRandom,
        Field(discriminator="by"),
    ]
    """The split whose labels are taken."""
    shuffled: float = Field(default=0.0, ge=0, le=1)
    """The share of the rows that exchange their labels among each other at random; every subset keeps its size. At 1
    nothing is left of the attribute but the sizes."""
    overlap: float = Field(default=0.0, ge=0, le=1)
    """Each subset gets so many rows of the others as well, as a share of its own size; they stay in their own."""

    @property
    def asks_base(self) -> bool:
        return self.of.asks_base

    @property
    def declared(self) -> tuple[str, ...]:
        """The subsets that there must be, rows or not."""
        return getattr(self.of, "declared", ())

    @property
    def column(self) -> str:
        """The attribute whose labels these are."""
        return getattr(self.of, "column", self.of.by)

    def forecast(self, forget: Corpus, base: LanguageModel) -> Forecast:
        """Says what the other split takes."""
        return self.of.forecast(forget, base)

    def split(self, forget: Corpus, base: LanguageModel, work: Work) -> list[tuple[str, ...]]:
        """Returns each row's subset names.

        Raises:
            DataError: The other split's.
        """
        labels = self.of.split(forget, base, work)
        rng = np.random.default_rng([work.seed, 1])  # other draws than the split's own
        labelled = np.array([row for row, names in enumerate(labels) if names], dtype=int)
        chosen = rng.choice(labelled, round(self.shuffled * len(labelled)), replace=False)
        given = [labels[row] for row in chosen]
        for row, place in zip(chosen, rng.permutation(len(chosen)), strict=True):
            labels[row] = given[place]
        return _shared(labels, labelled, self.overlap, rng)


def _shared(
    labels: list[tuple[str, ...]], labelled: np.ndarray, overlap: float, rng: np.random.Generator
) -> list[tuple[str, ...]]:
    shared = [list(names) for names in labels]
    for subset in sorted({name for names in labels for name in names}):
        others = [row for row in labelled if subset not in labels[row]]
        size = len(labelled) - len(others)
        for row in sorted(rng.choice(others, min(round(overlap * size), len(others)), replace=False)) if others else ():
            shared[row].append(subset)
    return [tuple(names) for names in shared]

"""Splits at random into given sizes: the control that asks whether the attribute mattered at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from spunge.errors import DataError
from spunge.interfaces import Splitter, Work
from spunge.rows.sources import Corpus

if TYPE_CHECKING:
    from spunge.weights.language_model import LanguageModel


class AtRandom(Splitter):
    """Disjoint subsets `random_1`, `random_2` … of the given sizes, drawn from the task's seed."""

    seeded: ClassVar[bool] = True

    by: Literal["random"] = "random"
    sizes: list[Annotated[int, Field(ge=1)]]
    """Rows of each subset; the control of an experiment takes them from its own split."""

    @property
    def names(self) -> list[str]:
        """The subsets' names, in the order of their sizes."""
        return [f"random_{number}" for number, _ in enumerate(self.sizes, 1)]

    def split(self, forget: Corpus, base: LanguageModel, work: Work) -> list[tuple[str, ...]]:
        """Returns each row's subset name; rows beyond the sum of the sizes are in none.

        Raises:
            DataError: The sizes add up to more rows than there are.
        """
        if sum(self.sizes) > len(forget):
            raise DataError(f"split.sizes: {sum(self.sizes)} rows are asked for, the forget set has {len(forget)}")
        names = [(name,) for name, size in zip(self.names, self.sizes, strict=True) for _ in range(size)]
        subsets: list[tuple[str, ...]] = [()] * len(forget)
        for row, name in zip(np.random.default_rng(work.seed).permutation(len(forget)), names, strict=False):
            subsets[row] = name
        return subsets

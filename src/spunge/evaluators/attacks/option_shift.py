"""Is it the letter that was unlearned, and not the answer? The listed choices are asked for in another order.

Some removals end in one letter for everything, or in the avoidance of one (Pezeshkpour and Hruschka, 2023,
arXiv:2308.11483, on how much the order moves a model). Each choice moves by as many places, so none keeps its letter.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Annotated, Literal

from pydantic import Field

from spunge.errors import DataError
from spunge.evaluators.attacks.attack import Ask, Attack, multiple_choice
from spunge.interfaces import LoadedVariant, Work


class OptionShift(Attack):
    """Moves each question's listed choices on by some places, the last ones to the front."""

    method: Literal["option_shift"] = "option_shift"
    places: tuple[Annotated[int, Field(ge=1)], ...] = (1, 2)
    """By how many."""

    @property
    def settings(self) -> tuple[str, ...]:
        """The numbers of places."""
        return tuple(f"choices moved by {count}" for count in self.places)

    def check(self) -> None:
        """Refuses suites whose model never sees an order, and what the suite refuses.

        Raises:
            DataError: The choices are not listed in the question, or a benchmark lists them its own way.
        """
        suite = multiple_choice(self)
        if suite.style != "letters" or suite.benchmark is not None:
            raise DataError(f"{self.suite}: {suite.suite!r} scores each choice by itself: there is no order to change")
        suite.check()

    def attempts(self, variant: LoadedVariant, work: Work) -> Iterator[tuple[str, Ask]]:
        """Yields each order."""
        suite = multiple_choice(self)
        for setting, count in zip(self.settings, self.places, strict=True):
            yield setting, partial(suite.ask, suite.questions(shift=count))

"""How far back towards the base model is what was unlearned there again? The variant is merged with the base.

Averaging an edited model with its base is what users of merges do without a thought. At a share of 1 the base itself is
left, which knows all; the question is how little of it is enough.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from spunge.evaluators.attacks.attack import Ask, Attack
from spunge.interfaces import LoadedVariant, Work


class Interpolation(Attack):
    """Merges the variant with its base model, and asks a suite again."""

    of_change: ClassVar[bool] = True

    method: Literal["interpolation"] = "interpolation"
    shares: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.25,)
    """The base model's share of the weights."""

    @property
    def settings(self) -> tuple[str, ...]:
        """The shares."""
        return tuple(f"{share:.0%} base" for share in self.shares)

    def attempts(self, variant: LoadedVariant, work: Work) -> Iterator[tuple[str, Ask]]:
        """Yields each share while the weights are so mixed."""
        assert variant.at is not None
        try:
            for setting, share in zip(self.settings, self.shares, strict=True):
                variant.at(1.0 - share)
                yield setting, self.of.evaluate
        finally:
            variant.at(1.0)

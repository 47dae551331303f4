"""Does setting the smallest weights to zero bring back what was unlearned? As compression before serving does.

Magnitude pruning, matrix by matrix (Han et al., 2015, arXiv:1506.02626): a small edit made of small changes goes with
the weights that are small.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from spunge.evaluators.attacks.attack import Ask, Attack, weights_changed
from spunge.interfaces import LoadedVariant, Work

if TYPE_CHECKING:
    from torch import Tensor


class Pruning(Attack):
    """Sets the smallest weights of every linear layer to zero, and asks a suite again."""

    method: Literal["pruning"] = "pruning"
    shares: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.1, 0.3)
    """How much of each matrix becomes zero."""

    @property
    def settings(self) -> tuple[str, ...]:
        """The shares."""
        return tuple(f"{share:.0%} pruned" for share in self.shares)

    def attempts(self, variant: LoadedVariant, work: Work) -> Iterator[tuple[str, Ask]]:
        """Yields each share while the smallest weights are zero."""
        shares = dict(zip(self.settings, self.shares, strict=True))

        def rest(setting: str, name: str, weight: Tensor) -> Tensor:
            return pruned(weight, shares[setting])

        for setting in weights_changed(variant, shares, rest):
            yield setting, self.of.evaluate


def pruned(weight: Tensor, share: float) -> Tensor:
    """Returns a matrix whose `share` of smallest magnitudes, rounded down to whole entries, is zero."""
    count = int(share * weight.numel())
    smallest = weight.abs().flatten().topk(count, largest=False).indices
    return weight.flatten().index_fill(0, smallest, 0.0).view_as(weight)

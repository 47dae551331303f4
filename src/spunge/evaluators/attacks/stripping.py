"""Is it undone without the base model's weights being known in full? The edit's largest directions are taken out again.

Of W = W₀ + Δ an attacker who has both publications takes Δ apart (SVD) and removes its largest singular directions.
Where few of them carry the removal, an edit is a patch that can be peeled off; and what then is left of Δ is what a
partial rollback (one shard, a failed download) leaves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from spunge.evaluators.attacks.attack import Ask, Attack, restored
from spunge.interfaces import LoadedVariant, Work

if TYPE_CHECKING:
    from torch import Tensor


class Stripping(Attack):
    """Removes the largest singular directions of what was added to each matrix, and asks a suite again."""

    cheap: ClassVar[Mapping[str, Any] | None] = {"ranks": (1,)}
    of_change: ClassVar[bool] = True

    method: Literal["stripping"] = "stripping"
    ranks: tuple[Annotated[int, Field(ge=1)], ...] = (1, 4)
    """How many directions of each matrix are removed."""

    @property
    def settings(self) -> tuple[str, ...]:
        """The ranks."""
        return tuple(f"rank {rank} removed" for rank in self.ranks)

    def attempts(self, variant: LoadedVariant, work: Work) -> Iterator[tuple[str, Ask]]:
        """Yields each rank while so much of the change is gone."""
        from torch import no_grad

        assert variant.at is not None
        after = {name: weight.detach().clone() for name, weight in variant.model.named_parameters()}
        variant.at(0.0)
        changes = {
            name: after[name] - weight.detach()
            for name, weight in variant.model.named_parameters()
            if weight.ndim == 2 and not after[name].equal(weight)
        }
        variant.at(1.0)
        for setting, rank in zip(self.settings, self.ranks, strict=True):
            with restored(variant.model):
                with no_grad():
                    for name, weight in variant.model.named_parameters():
                        if name in changes:
                            weight.sub_(largest(changes[name], rank))
                yield setting, self.of.evaluate


def largest(change: Tensor, rank: int) -> Tensor:
    """Returns the best approximation of a matrix by one of this rank (Eckart and Young, 1936)."""
    import torch

    U, S, Vh = torch.linalg.svd(change.float(), full_matrices=False)
    return ((U[:, :rank] * S[:rank]) @ Vh[:rank]).to(change.dtype)

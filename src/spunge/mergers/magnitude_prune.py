"""Magnitude pruning: trim as TIES does, then add up without electing signs; shows what election is worth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from spunge.interfaces import Block, Merger, Needs

if TYPE_CHECKING:
    from torch import Tensor


class MagnitudePrune(Merger):
    """The weighted sum of the trimmed task vectors: step 1 of TIES alone."""

    method: Literal["magnitude_prune"] = "magnitude_prune"
    density: float = Field(default=0.2, gt=0, le=1)
    """The share of entries that trimming keeps, as in ties."""
    scope: Literal["tensor", "changed", "model"] = "tensor"
    """What the density is a share of."""
    threshold_ties: Literal["include", "exclude"] = "include"
    """Whether entries that tie at the threshold are kept when that is more than the density."""

    def needs(self) -> Needs:
        return Needs(densities=(self.density,), scope=self.scope, threshold_ties=self.threshold_ties)

    def combine(self, block: Block) -> Tensor:
        from spunge import merging

        return merging.total(merging.weighted(block, merging.trimmed(block)))

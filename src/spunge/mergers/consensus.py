"""Sign consensus: only what all variants agree on, as in NegMerge (Kim et al., arXiv 2410.05583, section 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import model_validator

from spunge.interfaces import Block, Merger, Needs

if TYPE_CHECKING:
    from torch import Tensor


class Consensus(Merger):
    """The weighted mean where every variant has the same sign, and nothing elsewhere."""

    method: Literal["consensus"] = "consensus"

    @model_validator(mode="after")
    def _positive(self) -> Consensus:
        if min(self.named_weights.values(), default=1.0) <= 0:
            raise ValueError("weights must be positive: a variant that counts for nothing cannot agree")
        return self

    def needs(self) -> Needs:
        return Needs()

    def combine(self, block: Block) -> Tensor:
        from spunge import merging

        unanimous = merging.total(block.deltas.sign()).abs() == len(block.deltas)
        mean = merging.mean(merging.total(merging.weighted(block, block.deltas)), sum(block.weights))
        return mean * unanimous

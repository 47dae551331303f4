"""The unified task vector of EMR-Merging: elect a sign, take the largest entry that agrees.

Huang et al., EMR-Merging: Tuning-Free High-Performance Model Merging (arXiv 2405.17461), section 3, without the
masks and rescalers that restore single tasks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from spunge.interfaces import Block, Merger, Needs

if TYPE_CHECKING:
    from torch import Tensor


class EmrUnified(Merger):
    """The largest entry, in magnitude, among those that have the sign of the variants' weighted sum."""

    method: Literal["emr_unified"] = "emr_unified"

    def needs(self) -> Needs:
        return Needs()

    def combine(self, block: Block) -> Tensor:
        from spunge import merging

        deltas = merging.weighted(block, block.deltas)
        elected = merging.elect(deltas, "mass")
        return (deltas * elected).amax(0).clamp_(min=0) * elected

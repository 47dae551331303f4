"""MagMax: each weight takes the delta of the variant that moved it furthest.

Marczak et al., MagMax: Leveraging Model Merging for Seamless Continual Learning (arXiv 2407.06322), section 4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from spunge.interfaces import Block, Merger, Needs

if TYPE_CHECKING:
    from torch import Tensor


class MagMax(Merger):
    """The entry of largest magnitude among the weighted task vectors; of equal ones the first by variant name."""

    method: Literal["magmax"] = "magmax"

    def needs(self) -> Needs:
        return Needs()

    def combine(self, block: Block) -> Tensor:
        import torch

        from spunge import merging

        largest, *others = merging.weighted(block, block.deltas)
        for delta in others:
            largest = torch.where(delta.abs() > largest.abs(), delta, largest)
        return largest

"""DARE: drop entries at random, make up for it by rescaling the rest, add up.

Yu et al., Language Models are Super Mario (arXiv 2311.03099), section 3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from spunge.interfaces import Block, Merger, Needs

if TYPE_CHECKING:
    from torch import Tensor


class Dare(Merger):
    """The weighted sum of task vectors, of each of which a random share is kept and divided by that share."""

    method: Literal["dare"] = "dare"
    density: float = Field(default=0.2, gt=0, le=1)
    """The probability of an entry to be kept."""
    rescale: bool = True
    """Divide what is kept by the density, so that the expected delta stays the same."""

    def needs(self) -> Needs:
        return Needs()

    def combine(self, block: Block) -> Tensor:
        import torch

        from spunge import merging

        rows = []
        for variant, delta in zip(block.variants, block.deltas, strict=True):
            drawn = delta * (merging.uniform(block, variant) < self.density)
            rows.append(merging.mean(drawn, self.density) if self.rescale else drawn)
        return merging.total(merging.weighted(block, torch.stack(rows)))

"""DELLA: drop entries at random, small ones more often, rescale, then elect and average as TIES does.

Deep et al., DELLA-Merging: Reducing Interference through Magnitude-Based Sampling (arXiv 2406.11617), section 3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from spunge.interfaces import Block, Merger, Needs

if TYPE_CHECKING:
    from torch import Tensor


class Della(Merger):
    """TIES with random trimming: the larger an entry within its row of the matrix, the likelier it is kept."""

    method: Literal["della"] = "della"
    density: float = Field(default=0.2, gt=0, le=1)
    """The mean probability of an entry to be kept."""
    epsilon: float = Field(default=0.1, ge=0, lt=1)
    """The smallest entry of a row is kept with probability density − epsilon / 2, the largest with density +
    epsilon / 2, those between by rank; of equal magnitudes the earlier ranks lower."""
    rescale: bool = True
    """Divide each kept entry by its probability, so that the expected delta stays the same."""
    election: Literal["mass", "count", "none"] = "mass"
    """Elect signs as ties does and average what agrees, or, with `none`, add everything up."""

    @model_validator(mode="after")
    def _probabilities(self) -> Della:
        if not self.density - self.epsilon / 2 > 0 or not self.density + self.epsilon / 2 <= 1:
            raise ValueError("density ± epsilon / 2 must lie between 0 and 1: they are probabilities")
        if self.election != "none" and min(self.named_weights.values(), default=1.0) < 0:
            raise ValueError("weights must not be negative, unless election is none")
        return self

    def needs(self) -> Needs:
        return Needs(granularity="row")

    def combine(self, block: Block) -> Tensor:
        import torch

        from spunge import merging

        columns = block.deltas.shape[-1]
        steps = torch.arange(columns, device=block.deltas.device, dtype=torch.float32) / max(columns - 1, 1)
        probabilities = self.density - self.epsilon / 2 + self.epsilon * steps
        rows = []
        for variant, delta in zip(block.variants, block.deltas, strict=True):
            order = delta.abs().argsort(dim=-1, stable=True)
            probability = torch.empty_like(delta).scatter_(-1, order, probabilities.expand_as(delta).contiguous())
            drawn = delta * (merging.uniform(block, variant) < probability)
            rows.append(drawn / probability if self.rescale else drawn)
        deltas = merging.weighted(block, torch.stack(rows))
        if self.election == "none":
            return merging.total(deltas)
        return merging.disjoint_mean(deltas, merging.elect(deltas, self.election), block.weights, "count")

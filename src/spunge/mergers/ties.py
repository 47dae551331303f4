"""TIES: trim each task vector, elect a sign for every weight, average what agrees with it.

Yadav et al., TIES-Merging: Resolving Interference When Merging Models (arXiv 2306.01708), section 4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from spunge.interfaces import Block, Merger, Needs

if TYPE_CHECKING:
    from torch import Tensor


class Ties(Merger):
    """Trims every task vector to its largest entries, elects signs, and averages the entries that agree."""

    method: Literal["ties"] = "ties"
    density: float = Field(default=0.2, gt=0, le=1)
    """The share of entries that trimming keeps: those whose magnitude is at least that of the
    int(density · n)-th largest, at least one; n counts zeros, and zeros are never kept."""
    scope: Literal["tensor", "changed", "model"] = "tensor"
    """What the density is a share of: each tensor, all tensors that any variant changes taken as one, or the model."""
    threshold_ties: Literal["include", "exclude"] = "include"
    """Entries whose magnitude equals the threshold: all kept, or, if that would be more than int(density · n) entries,
    none of them."""
    election: Literal["mass", "count"] = "mass"
    """A weight's sign is that of the sum of the trimmed deltas, or of the sum of their signs; a sum of exactly zero
    elects nothing, and the delta is 0."""
    normalize: Literal["count", "weights", "none"] = "count"
    """What the sum of the agreeing entries is divided by: their number, the sum of their weights, or nothing."""

    @model_validator(mode="after")
    def _positive(self) -> Ties:
        if self.normalize != "none" and min(self.named_weights.values(), default=1.0) < 0:
            raise ValueError("weights must not be negative, unless normalize is none")
        return self

    def needs(self) -> Needs:
        return Needs(densities=(self.density,), scope=self.scope, threshold_ties=self.threshold_ties)

    def combine(self, block: Block) -> Tensor:
        from spunge import merging

        return merging.ties(block, self.election, self.normalize)

"""Model Breadcrumbs: cut both the smallest and the very largest entries of each tensor, add up the rest.

Davari and Belilovsky, Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse Masks (arXiv 2312.06795).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from spunge.interfaces import Block, Merger, Needs

if TYPE_CHECKING:
    from torch import Tensor


class Breadcrumbs(Merger):
    """The weighted sum of task vectors without their outliers; these are often what unlearning wrote: a control."""

    method: Literal["breadcrumbs"] = "breadcrumbs"
    density: float = Field(default=0.2, gt=0, le=1)
    """The share of each tensor's entries that is kept: the next largest after the outliers."""
    gamma: float = Field(default=0.01, ge=0, lt=1)
    """The share of each tensor's entries that is cut as outliers; at least one entry, unless 0."""

    @model_validator(mode="after")
    def _shares(self) -> Breadcrumbs:
        if self.density + self.gamma > 1:
            raise ValueError("density + gamma must not exceed 1: they are shares of the same entries")
        return self

    def needs(self) -> Needs:
        outliers = (self.gamma,) if self.gamma else ()
        return Needs(densities=(self.density + self.gamma, *outliers))

    def combine(self, block: Block) -> Tensor:
        from spunge import merging

        deltas = merging.trimmed(block)
        if self.gamma:
            for delta, (_, outlier) in zip(deltas, block.thresholds, strict=True):
                delta *= delta.abs() < outlier
        return merging.total(merging.weighted(block, deltas))

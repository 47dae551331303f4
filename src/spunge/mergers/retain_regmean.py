"""RegMean anchored on the retain set: the matrix whose outputs fit every variant on its subset, and the base elsewhere.

After Jin et al., Dataless Knowledge Fusion by Merging Weights of Language Models (arXiv 2212.09849), equation 2, with
a term for the retain set. For one matrix W₀ with changes Δᵢ and inputs Xᵢ of subset i, X of the retain set, the merged
change Δ minimises Σ wᵢ ‖Xᵢ(Δ − Δᵢ)ᵀ‖² + β ‖X Δᵀ‖², so that Δ (Σ wᵢ Gᵢ + β G) = Σ wᵢ Δᵢ Gᵢ with G = XᵀX.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from spunge.interfaces import Block, Merger, Needs

if TYPE_CHECKING:
    from torch import Tensor


class RetainRegMean(Merger):
    """Least squares over the changed matrices, from Gram matrices of their inputs; other tensors are averaged."""

    method: Literal["retain_regmean"] = "retain_regmean"
    beta: float = Field(default=1.0, ge=0)
    """How much it counts that outputs on the retain set stay those of the base model."""
    shrink: float = Field(default=0.1, ge=0, le=1)
    """The off-diagonal of each Gram matrix is multiplied by 1 − this, against overfitting to few tokens."""
    ridge: float = Field(default=1e-6, gt=0)
    """Added to the system's diagonal, as a share of its mean, so that it can be solved."""
    rows: int = Field(default=256, ge=1)
    """The first so many rows of each subset, and of the retain set, are what the inputs are taken from."""

    @model_validator(mode="after")
    def _positive(self) -> RetainRegMean:
        if min(self.named_weights.values(), default=1.0) < 0:
            raise ValueError("weights must not be negative in a least-squares fit")
        return self

    def needs(self) -> Needs:
        return Needs(granularity="tensor", grams=self.rows)

    def combine(self, block: Block) -> Tensor:
        import torch

        from spunge import merging

        if block.grams is None:
            return merging.average(block)
        *subsets, retain = (self._shrunk(gram.double()) for gram in block.grams)
        system = self.beta * retain
        target = torch.zeros_like(block.deltas[0], dtype=torch.float64)
        for delta, weight, gram in zip(block.deltas, block.weights, subsets, strict=True):
            system += weight * gram
            target += weight * (delta.double() @ gram)
        system.diagonal().add_(self.ridge * system.diagonal().mean())
        return torch.linalg.solve(system, target.T).T.float().contiguous()

    def _shrunk(self, gram: Tensor) -> Tensor:
        return gram * (1 - self.shrink) + gram.diagonal().diag() * self.shrink

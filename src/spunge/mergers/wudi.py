"""WUDI: the change that differs least from every variant's on the directions which that variant reads.

Cheng et al., Whoever Started the Interference Should End It: Guiding Data-Free Model Merging via Task Vectors (arXiv
2503.08099): Δ minimises Σ ‖(Δ − Δᵢ) Δᵢᵀ‖² / ‖Δᵢ‖², the rows of Δᵢ standing for the inputs it was trained on. The
authors take 300 steps of Adam from the sum; as a weight moves by no more than 1e-5 a step, their result depends on how
long the task vectors are. The problem is quadratic, so here it is solved: Δ (Σ Gᵢ) = Σ Δᵢ Gᵢ, Gᵢ = ΔᵢᵀΔᵢ / ‖Δᵢ‖².
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from spunge.interfaces import Block, Merger, Needs

if TYPE_CHECKING:
    from torch import Tensor


class Wudi(Merger):
    """Least squares over the rows of the task vectors themselves; embeddings and what is no matrix are averaged."""

    method: Literal["wudi"] = "wudi"

    def needs(self) -> Needs:
        return Needs(granularity="tensor")

    def combine(self, block: Block) -> Tensor:
        from spunge import merging
        from spunge.weights.adapter import names_embedding

        return merging.average(block) if names_embedding(block.tensor) else merging.by_matrix(block, _combine)


def _combine(deltas: Tensor) -> Tensor:
    import torch

    system = torch.zeros(deltas.shape[2], deltas.shape[2], dtype=torch.float64)
    target = torch.zeros(deltas.shape[1:], dtype=torch.float64)
    for delta in deltas.double():
        gram = delta.T @ delta / delta.square().sum().clamp_(min=torch.finfo(torch.float64).tiny)
        system += gram
        target += delta @ gram
    # The least Δ of those that solve it: what no variant reads stays the base's. Eigenvalues are squares, so rounding
    # of the float32 task vectors (relative 6e-8) lies under the cut of float64's ε times the size.
    return target @ torch.linalg.pinv(system, hermitian=True)

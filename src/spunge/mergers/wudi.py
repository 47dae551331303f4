"""WUDI: the change that differs least from every variant's on the directions which that variant reads.

Cheng et al., Whoever Started the Interference Should End It: Guiding Data-Free Model Merging via Task Vectors (arXiv
2503.08099): Δ minimises Σ ‖(Δ − Δᵢ) Δᵢᵀ‖² / ‖Δᵢ‖², the rows of Δᵢ standing for the inputs it was trained on. The
authors take 300 steps of Adam from the sum; as a weight moves by no more than 1e-5 a step, their result depends on how
long the task vectors are. The problem is quadratic, so here it is solved: Δ (Σ Gᵢ) = Σ Δᵢ Gᵢ, Gᵢ = ΔᵢᵀΔᵢ / ‖Δᵢ‖²;
`steps: 300` is as published.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from spunge.interfaces import Block, Merger, Needs

if TYPE_CHECKING:
    from torch import Tensor


class Wudi(Merger):
    """Least squares over the rows of the task vectors themselves; embeddings and what is no matrix are averaged."""

    unkeyed_default: ClassVar[frozenset[str]] = frozenset({"steps", "learning_rate"})

    method: Literal["wudi"] = "wudi"
    steps: int | None = Field(default=None, ge=1)
    """null: the problem is solved. A number: so many steps of Adam from the sum, as published (300)."""
    learning_rate: float = Field(default=1e-5, gt=0)
    """Of these steps."""

    def needs(self) -> Needs:
        return Needs(granularity="tensor")

    def combine(self, block: Block) -> Tensor:
        from spunge import merging
        from spunge.weights.adapter import names_embedding

        return merging.average(block) if names_embedding(block.tensor) else merging.by_matrix(block, self._combine)

    def _combine(self, deltas: Tensor) -> Tensor:
        if self.steps is None:
            return _solved(deltas)
        return _descended(deltas, self.steps, self.learning_rate)


def _system(deltas: Tensor) -> tuple[Tensor, Tensor]:
    """Σ Gᵢ and Σ Δᵢ Gᵢ."""
    import torch

    system = torch.zeros(deltas.shape[2], deltas.shape[2], dtype=torch.float64)
    target = torch.zeros(deltas.shape[1:], dtype=torch.float64)
    for delta in deltas.double():
        gram = delta.T @ delta / delta.square().sum().clamp_(min=torch.finfo(torch.float64).tiny)
        system += gram
        target += delta @ gram
    return system, target


def _solved(deltas: Tensor) -> Tensor:
    import torch

    system, target = _system(deltas)
    # The least Δ of those that solve it: what no variant reads stays the base's. Eigenvalues are squares, so rounding
    # of the float32 task vectors (relative 6e-8) lies under the cut of float64's ε times the size.
    return target @ torch.linalg.pinv(system, hermitian=True)


def _descended(deltas: Tensor, steps: int, rate: float) -> Tensor:
    import torch

    system, target = _system(deltas)
    merged = deltas.double().sum(0).requires_grad_(True)
    optimizer = torch.optim.Adam([merged], lr=rate)
    for _ in range(steps):
        merged.grad = 2 * (merged.detach() @ system - target)  # of Σ ‖(Δ − Δᵢ) Δᵢᵀ‖² / ‖Δᵢ‖²
        optimizer.step()
    return merged.detach()

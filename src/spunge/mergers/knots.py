"""KnOTS: the variants are turned into one shared basis, and merged there by TIES.

Stoica et al., Model Merging with SVD to Tie the Knots (arXiv 2410.19735): [Δ₁ … Δₜ], side by side, is U S [V₁ … Vₜ];
the parts S Vᵢ, which are variant i in the basis U, are trimmed, signs are elected and what agrees is averaged; U times
the result is the merged change. For LoRA, whose factors hardly overlap entry by entry.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from spunge.interfaces import Block, Merger, Needs

if TYPE_CHECKING:
    from torch import Tensor


class Knots(Merger):
    """TIES in the basis of all variants' common left singular vectors; what is no matrix is averaged."""

    method: Literal["knots"] = "knots"
    density: float = Field(default=1.0, gt=0, le=1)
    """The share of a variant's entries in the shared basis that trimming keeps; the authors keep all."""

    def needs(self) -> Needs:
        return Needs(granularity="tensor")

    def combine(self, block: Block) -> Tensor:
        from spunge import merging

        return merging.by_matrix(block, self._combine)

    def _combine(self, deltas: Tensor) -> Tensor:
        import torch

        from spunge import merging

        shared = merging.decompose(torch.cat(list(deltas), dim=1))
        if not shared.rank:  # nothing changes this matrix
            return torch.zeros_like(deltas[0])
        aligned = shared.values[:, None] * shared.right.T
        # What a variant does not have comes out of the decomposition as some 1e-16 of either sign; it would count as
        # agreeing, and halve what another variant has there.
        aligned = torch.where(aligned.abs() > torch.finfo(torch.float32).eps * shared.values[0], aligned, 0.0)
        parts = aligned.reshape(shared.rank, len(deltas), -1).transpose(0, 1)
        trimmed = torch.stack([_trim(part, self.density) for part in parts])
        elected = merging.elect(trimmed, "mass")
        agreed = merging.disjoint_mean(trimmed, elected, (1.0,) * len(deltas), "count")
        return shared.left @ agreed


def _trim(part: Tensor, density: float) -> Tensor:
    """Returns the largest entries, as many as the density says; at least one."""
    import torch

    dropped = part.numel() - max(int(density * part.numel()), 1)
    if dropped <= 0:
        return part
    threshold = part.abs().flatten().kthvalue(dropped).values
    return torch.where(part.abs() > threshold, part, 0.0)

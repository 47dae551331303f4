"""Iso-C and Iso-CTS: the summed change with all its directions equally long, so that none drowns another.

Marczak et al., No Task Left Behind: Isotropic Model Merging with Common and Task-Specific Subspaces (arXiv 2502.04959).
Iso-C (section 4.1) replaces the singular values of the sum by their mean. Iso-CTS (section 4.2) keeps the sum's leading
directions and fills the rest with what is each variant's private outside of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from spunge.interfaces import Block, Merger, Needs

if TYPE_CHECKING:
    from torch import Tensor


class Isotropic(Merger):
    """Flattens the spectrum of the summed task vectors; what is no matrix is averaged."""

    method: Literal["isotropic"] = "isotropic"
    common: float = Field(default=0.8, gt=0, le=1)
    """The share of the sum's directions that is kept; the rest is filled with directions of single variants, as many
    of each (Iso-CTS). 1 is Iso-C."""

    def needs(self) -> Needs:
        return Needs(granularity="tensor")

    def combine(self, block: Block) -> Tensor:
        from spunge import merging

        return merging.by_matrix(block, self._combine)

    def _combine(self, deltas: Tensor) -> Tensor:
        import torch

        from spunge import merging

        whole = merging.decompose(merging.total(deltas))
        if not whole.rank:  # nothing changes this matrix, or the variants cancel out
            return torch.zeros_like(deltas[0])
        private = int(whole.rank * (1 - self.common)) // len(deltas)
        shared = whole.leading(whole.rank - private * len(deltas))
        spectra = [shared]
        for delta in deltas:
            delta = delta.double()  # one at a time: all at once would double what the merge holds
            spectra.append(merging.decompose(delta - shared.left @ (shared.left.T @ delta)).leading(private))
        joined = merging.join(spectra)
        return joined.values.mean() * (joined.left @ joined.right.T)

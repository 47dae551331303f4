"""TSV-M: the leading singular vectors of every variant, turned until those of different variants are orthogonal.

Gargiulo et al., Task Singular Vectors: Reducing Task Interference in Model Merging (arXiv 2412.00081), section 3.3:
of T variants each gives its min(rows, columns) / T leading triples; they stand side by side as U diag(s) Vᵀ, and U and
V are replaced by their polar factors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from spunge.interfaces import Block, Merger, Needs

if TYPE_CHECKING:
    from torch import Tensor


class Tsv(Merger):
    """Sums the variants' leading singular triples, made orthogonal to each other's; what is no matrix is averaged."""

    method: Literal["tsv"] = "tsv"

    def needs(self) -> Needs:
        return Needs(granularity="tensor")

    def combine(self, block: Block) -> Tensor:
        from spunge import merging

        return merging.by_matrix(block, _combine)


def _combine(deltas: Tensor) -> Tensor:
    from spunge import merging

    share = max(min(deltas.shape[1:]) // len(deltas), 1)
    joined = merging.join([merging.decompose(delta).leading(share) for delta in deltas])
    return (joined.left * joined.values) @ joined.right.T

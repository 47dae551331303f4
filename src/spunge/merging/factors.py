"""Merging into an adapter: factors concatenated where that is exact, else found by SVD."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spunge.interfaces import Block
from spunge.merging.diagnostics import ratio, rounded
from spunge.merging.job import Job
from spunge.weights import adapter
from spunge.weights.task_vector import LowRank

_EXACT_SVD = 512


class Factors:
    """Turns merged deltas into LoRA factors, one tensor at a time: concatenated where that is exact, else by SVD."""

    def __init__(self, job: Job, rank: int) -> None:
        self._job = job
        self._rank = rank
        self._factors: dict[str, LowRank] = {}
        self._name, self._dense = "", torch.empty(0)
        self._kept = self._whole = 0.0
        entries = [entry for variant in job.variants.values() for entry in variant.entries.values()]
        self.exact = job.needs.linear and all(isinstance(entry, LowRank) for entry in entries)

    def write(self, name: str, start: int, values: Tensor) -> None:
        if self.exact:
            return
        if name != self._name:
            self._split()
            self._name, self._dense = name, values.new_empty(math.prod(self._job.shapes[name]))
        self._dense[start : start + len(values)] = values

    def finish(self) -> dict[str, LowRank]:
        if self.exact:
            return {name: self._concatenated(name) for name in self._job.shapes}
        self._split()
        return self._factors

    @property
    def energy(self) -> float | None:
        return 1.0 if self.exact else rounded(ratio(self._kept, self._whole))

    def _split(self) -> None:
        if not self._name:
            return
        matrix = self._dense.reshape(self._job.shapes[self._name])
        transposed = self._job.base is not None and adapter.stores_transposed(self._job.base, self._name)
        left, values, right = leading_svd(matrix.T if transposed else matrix, self._rank)
        # Float64: sums of millions of squares, of which a share near 1 is told.
        self._whole += float(matrix.double().square().sum())
        self._kept += float(values.double().square().sum())
        root = values.sqrt()
        self._factors[self._name] = LowRank(
            (root[:, None] * right.T).cpu(), (left * root * self._job.scale).cpu(), 1.0, transposed
        )

    def _concatenated(self, name: str) -> LowRank:
        """The exact merge of low-rank deltas: Σ cᵢ sᵢ Bᵢ Aᵢ is one product of stacked factors."""
        job = self._job
        # A linear merger shows its coefficients when each variant is a unit.
        unit = torch.eye(len(job.variants))
        coefficients = job.merger.combine(
            Block(unit, job.weights, (), tuple(job.variants), name, job.shapes[name], 0, job.options.seed)
        )
        coefficients = coefficients * job.layer_factor(name)
        downs, ups, transposed = [], [], False
        for coefficient, variant in zip(coefficients.tolist(), job.variants.values(), strict=True):
            entry = variant.entries.get(name)
            if isinstance(entry, LowRank):
                scale = job.scale if job.factored else job.scale * variant.scale
                downs.append(entry.A.float())
                ups.append(entry.B.float() * (coefficient * scale * entry.scaling))
                transposed = entry.transposed
        return LowRank(torch.cat(downs), torch.cat(ups, 1), 1.0, transposed)


def leading_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the leading singular vectors and values: left [rows, rank], values [rank], right [columns, rank].

    Exact for small matrices; for large ones by subspace iteration from a fixed random start (Halko et al.,
    arXiv 0909.4061, algorithm 4.4).
    """
    rank = min(rank, *matrix.shape)
    if min(matrix.shape) <= max(_EXACT_SVD, 2 * rank):
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        return left[:, :rank], values[:rank], right[:rank].T
    # Sixteen directions more than asked for keep those that are from taking the error; the seed is fixed, because two
    # merges of the same variants have to be equal.
    start = torch.randn(matrix.shape[1], rank + 16, generator=torch.Generator().manual_seed(0)).to(matrix.device)
    basis = torch.linalg.qr(matrix @ start).Q
    # Orthogonalised after each product: the powers of the matrix would else leave every column along its first vector.
    for _ in range(4):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
    left, values, right = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return (basis @ left)[:, :rank], values[:rank], right[:rank].T

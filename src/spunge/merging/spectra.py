"""Singular values and vectors of task vectors, for mergers that combine matrices rather than entries.

Everything is cut to the numerical rank. A LoRA's task vector has rank r in a matrix of hundreds of rows; a
decomposition returns orthonormal vectors for its null directions too, which are arbitrary, and each published spectral
method lets some of them in: with four variants of rank 16 in a 768 × 576 matrix, TSV-M's 144 triples a variant give a
result that differs by 62 % from that of the 16 true ones, and Iso-C spreads all but 11 % of its energy over directions
that no variant changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from spunge.interfaces import Block
from spunge.merging.kernels import average, weighted


@dataclass(frozen=True, eq=False)
class Spectrum:
    """A matrix as Σ sⱼ uⱼ vⱼᵀ, the largest first, without its null directions."""

    left: Tensor
    """[rows, rank], orthonormal columns."""
    values: Tensor
    """[rank], positive and falling."""
    right: Tensor
    """[columns, rank], orthonormal columns."""

    @property
    def rank(self) -> int:
        """The number of triples."""
        return len(self.values)

    def leading(self, count: int) -> Spectrum:
        """Returns the `count` largest triples, or all if there are fewer."""
        return Spectrum(self.left[:, :count], self.values[:count], self.right[:, :count])


def decompose(matrix: Tensor) -> Spectrum:
    """Returns a matrix's singular triples, down to what rounding of a float32 matrix leaves of a zero.

    In float64: the task vectors are float32, so a null direction's singular value then is rounding of the input alone,
    and the cut (`max(rows, columns) · ε₃₂ · s₁`, as numpy's `matrix_rank`) lies well above it.
    """
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    floor = max(matrix.shape) * torch.finfo(torch.float32).eps * values[:1]
    rank = int((values > floor).sum())
    return Spectrum(left[:, :rank], values[:rank], right[:rank].T)


def _orthogonalise(columns: Tensor) -> Tensor:
    """Returns the matrix of orthonormal columns nearest to these: the polar factor, on their own span.

    Columns that depend on each other, as those of two equal variants, share what they have: the factor's null
    directions would be arbitrary.
    """
    spectrum = decompose(columns)
    return spectrum.left @ spectrum.right.T


def join(spectra: Sequence[Spectrum]) -> Spectrum:
    """Returns the triples of several matrices as those of one: their vectors side by side, made orthogonal."""
    return Spectrum(
        _orthogonalise(torch.cat([spectrum.left for spectrum in spectra], dim=1)),
        torch.cat([spectrum.values for spectrum in spectra]),
        _orthogonalise(torch.cat([spectrum.right for spectrum in spectra], dim=1)),
    )


def by_matrix(block: Block, combine: Callable[[Tensor], Tensor]) -> Tensor:
    """Combines a whole tensor matrix by matrix; what is no matrix, as a bias or a norm, is averaged.

    Args:
        block: A whole tensor. One of more than two dimensions, as fused experts, is a stack of matrices.
        combine: Weighted deltas [variants, rows, columns] → the merged matrix.
    """
    if len(block.shape) < 2:
        return average(block)
    deltas = weighted(block, block.deltas)
    stacks = deltas.reshape(len(deltas), -1, *block.shape[-2:])
    with _one_thread():
        merged = [combine(stacks[:, index]) for index in range(stacks.shape[1])]
    return torch.stack(merged).reshape(deltas.shape[1:]).to(deltas.dtype)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Lets LAPACK work alone: with more threads it sums in another order, and the merge would depend on the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

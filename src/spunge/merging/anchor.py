"""The retain-anchored step: a task vector turned away from the directions that the retain set's inputs take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from spunge.weights.task_vector import Entry, LowRank, TaskVector


def anchored(vector: TaskVector, grams: Mapping[str, Tensor], mu: float) -> TaskVector:
    """Returns the task vector nearest to one that changes the retain set's outputs little, in closed form.

    For each matrix X minimises ‖X − Δ‖² + μ tr(X C Xᵀ), which is the squared change of the layer's outputs over inputs
    of covariance C; so X = Δ (I + μC)⁻¹. C is brought to a mean eigenvalue of 1 first: with that, μ means the same in
    every layer and model, while inputs differ in length a hundredfold between them.

    Args:
        vector: The task vector; a low-rank change stays one, of the same rank.
        grams: Of the matrices to anchor: parameter name → [in, in], the mean of x xᵀ over the retain set's inputs (see
            `gram_matrices`). Other tensors stay as they are.
        mu: 0 changes nothing; the greater, the less of what the retain set's inputs meet is left.
    """
    entries: dict[str, Entry] = dict(vector.entries)
    for name in vector:
        if name not in grams:
            continue
        # float64: the covariance of language models' inputs spans some ten powers of ten.
        covariance = grams[name].double()
        trace = float(covariance.trace())
        if not trace:
            continue
        system = covariance * (mu * len(covariance) / trace)
        system.diagonal().add_(1.0)
        entry = vector.entries[name]
        if isinstance(entry, LowRank) and not entry.transposed:
            entries[name] = replace(entry, A=_divided(entry.A, system))
        else:
            entries[name] = _divided(
                vector.read(name, 0, vector.shape(name).numel()).reshape(vector.shape(name)), system
            )
    return replace(vector, entries=entries)


def _divided(matrix: Tensor, system: Tensor) -> Tensor:
    """Returns matrix · system⁻¹ for a symmetric positive definite system."""
    factor = torch.linalg.cholesky(system)
    return torch.cholesky_solve(matrix.to(system).T, factor).T.float().contiguous()

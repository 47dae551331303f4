"""A forget gradient whitened: its leading directions brought down to the level of the others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from spunge.errors import TrainingDiverged
from spunge.interfaces import Progress
from spunge.merging import leading_svd
from spunge.training import losses
from spunge.training.rows import Encoded
from spunge.training.trainee import Trainee


def whitened(gradient: Tensor, components: int) -> Tensor:
    """Collapses a matrix's leading singular directions from both sides (RepSelect, arXiv 2606.17168).

    c(M, V) = M − M V (I − diag(s_min / s)) Vᵀ with V the leading right singular vectors and s_min the smallest of their
    singular values; the result is c(c(G, V)ᵀ, U)ᵀ. In short: of the leading triples, s becomes s_min² / s, and the rest
    stays. What all texts share, such as grammar, is in the leading directions, and so counts least.

    Args:
        gradient: [rows, columns], float32.
        components: How many directions are brought down; at most as many as the matrix has.
    """
    left, values, right = leading_svd(gradient, components)
    # What rounding leaves of a zero is no direction: with s_min = 0 the edit would be nothing at all.
    kept = values > max(gradient.shape) * torch.finfo(values.dtype).eps * values[:1]
    left, values, right = left[:, kept], values[kept], right[:, kept]
    if not len(values):
        return torch.zeros_like(gradient)
    share = 1 - values[-1] / values
    once = gradient - (gradient @ right) * share @ right.T
    return once - left @ (share[:, None] * (left.T @ once))


def descend(trainee: Trainee, rows: Sequence[Encoded], batches: Sequence[Sequence[int]], rate: float) -> None:
    """Learns the rows by plain gradient descent, a step a batch.

    Raises:
        TrainingDiverged: A loss became NaN or infinite.
    """
    parameters = list(trainee.parameters.values())
    for indices in batches:
        _nll(trainee, rows, indices, "lora_learning_rate").backward()
        with torch.no_grad():
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=rate)
                    parameter.grad = None


def summed_gradient(
    trainee: Trainee,
    weights: Mapping[str, nn.Parameter],
    rows: Sequence[Encoded],
    batches: Sequence[Sequence[int]],
    progress: Progress,
) -> dict[str, Tensor]:
    """Returns the sum over batches of the gradients of their mean negative log-likelihood, float32.

    The adapter is active and does not move; the weights' own gradients are asked for.

    Raises:
        TrainingDiverged: A loss became NaN or infinite.
    """
    for parameter in trainee.parameters.values():
        parameter.requires_grad_(False)
    total = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
    for weight in weights.values():
        weight.requires_grad_(True)
    try:
        for number, indices in enumerate(batches):
            loss = _nll(trainee, rows, indices, "lora_learning_rate")
            loss.backward()
            for name, weight in weights.items():
                if weight.grad is not None:
                    total[name] += weight.grad  # at once: summed in bfloat16, small gradients would be lost
                    weight.grad = None
            progress("gradient", number + 1, len(batches), nll=float(loss.detach()))
    finally:
        for weight in weights.values():
            weight.requires_grad_(False)
        for parameter in trainee.parameters.values():
            parameter.requires_grad_(True)
    return total


def _nll(trainee: Trainee, rows: Sequence[Encoded], indices: Sequence[int], setting: str) -> Tensor:
    batch = trainee.collate(rows, indices)
    loss = losses.cross_entropy(trainee(batch), batch.labels)
    if not math.isfinite(float(loss.detach())):
        raise TrainingDiverged(f"the forget set's loss became {float(loss.detach())}; lower {setting}")
    return loss

"""How much memory a run needs, known before any weight is read, and the refusal where that is not there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from spunge.errors import ModelError, RecipeError
from spunge.files import format_bytes
from spunge.steering.settings import Steering
from spunge.steering.truncated import skeleton_of
from spunge.weights.device import free_memory
from spunge.weights.language_model import LanguageModel
from spunge.weights.shape import activations_of, compute_dtype, find_layers


@dataclass(frozen=True)
class Estimate:
    """Bytes."""

    weights: int
    """Embeddings and the layers up to the steered one."""
    training: int
    """The changed matrices, their gradients, masters and the optimiser's moments."""
    activations: int
    """What one backward pass keeps of the longest batch."""
    task_vector: int
    """What the run leaves: float32 deltas of the changed matrices."""

    @property
    def needed(self) -> int:
        """What must fit at once; the cached states take what is left, or the disk."""
        return self.weights + self.training + self.activations


def estimate(
    settings: Steering,
    base: LanguageModel,
    parameters: Mapping[int, Sequence[str]],
    *,
    tokens: int,
    dtype: str | None = None,
) -> Estimate:
    """Returns what a run takes, for a longest row of so many tokens.

    Raises:
        ModelError: The architecture or the layer is not to be had.
        RecipeError: The numbers that are trained cannot hold a training.
    """
    skeleton = skeleton_of(base, settings.layer + 1)
    layers = find_layers(skeleton)
    compute = compute_dtype(skeleton.config, dtype or base.dtype)
    refuse_float16(settings, compute)
    size = compute.itemsize
    master = size if settings.master == "model" else 4
    changed = sum(layers[layer].get_parameter(name).numel() for layer, names in parameters.items() for name in names)
    depth = settings.layer + 1 - min(parameters)
    return Estimate(
        weights=sum(parameter.numel() for parameter in skeleton.parameters()) * size,
        # What the passes use and its gradient; then master, the weights before the last update, and two moments.
        training=changed * (2 * size + 4 * master),
        activations=settings.batch_size * tokens * depth * activations_of(layers[-1]) * size,
        task_vector=4 * changed,
    )


def refuse_float16(settings: Steering, compute: torch.dtype) -> None:
    """Refuses to train the matrices in float16 themselves.

    Adam's ε of 1e-8 is zero there, and so is the square of every gradient below 2e-4: what comes of it is 0 / 0, or no
    step at all, where bfloat16 merely rounds.

    Raises:
        RecipeError: That is asked for.
    """
    if settings.master == "model" and compute == torch.float16:
        raise RecipeError(
            f"master: model{' (of preset: faithful)' if settings.preset else ''} trains in the model's float16, where "
            "small gradients are zero and the rest is NaN: set master: float32, or model.dtype: bfloat16"
        )


def check_memory(expected: Estimate, device: str) -> None:
    """Refuses what cannot fit.

    Raises:
        ModelError: The device has less memory left than the run needs.
    """
    free = free_memory(device)
    if expected.needed > free:
        raise ModelError(
            f"about {format_bytes(expected.needed)} are needed and {format_bytes(free)} are free on {device}: weights "
            f"{format_bytes(expected.weights)}, training {format_bytes(expected.training)}, activations "
            f"{format_bytes(expected.activations)}; lower batch_size or max_length, or compute in bfloat16"
        )

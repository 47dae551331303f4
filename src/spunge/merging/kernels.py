"""The arithmetic that mergers share: pure functions on a block, the same on every device."""

from __future__ import annotations

import hashlib
import importlib
import json
import struct
import sys
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from spunge.interfaces import Block

COMPILED_FROM = 1 << 25
"""Elements of all variants from which loading compiled loops, half a second, costs less than they spare."""
_GOLDEN, _MIX_1, _MIX_2 = (c - (1 << 64) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def trimmed(block: Block) -> Tensor:
    """Returns the deltas with everything under each variant's threshold set to zero (TIES, step 1)."""
    survivors = torch.empty_like(block.deltas)
    for row, delta, (threshold, *_) in zip(survivors, block.deltas, block.thresholds, strict=True):
        # hardshrink keeps what is strictly greater, so it is given the float just below the threshold.
        torch.hardshrink(delta, lambd=_below(threshold), out=row)
    return survivors


def load_loops(elements: int) -> None:
    """Loads the compiled loops where numba is installed, for a merge of so many elements of all variants."""
    if elements >= COMPILED_FROM and find_spec("numba") is not None:
        importlib.import_module("spunge.merging.compiled")


def loops(*tensors: Tensor) -> Any:
    """Returns the compiled loops, if a merge has loaded them and all these tensors are the processor's own; else None.

    They come to the same weights bit for bit, so what a process loaded once it may use ever after.
    """
    compiled = sys.modules.get("spunge.merging.compiled")
    return compiled if all(tensor.device.type == "cpu" for tensor in tensors) else None


def ties(block: Block, election: Literal["mass", "count"], normalize: Literal["count", "weights", "none"]) -> Tensor:
    """Returns what TIES makes of a block: trimmed, elected and averaged."""
    if (compiled := loops(block.deltas)) is None:
        deltas = weighted(block, trimmed(block))
        return disjoint_mean(deltas, elect(deltas, election), block.weights, normalize)
    deltas = block.deltas.reshape(len(block.deltas), -1)
    below = np.array([_below(threshold) for threshold, *_ in block.thresholds], np.float32)
    merged, weights = torch.empty(deltas.shape[1]), np.array(block.weights, np.float32)
    divisor = {"none": 0, "count": 1, "weights": 2}[normalize]
    compiled.ties(
        deltas.numpy(), below, weights, bool((weights != 1).any()), election == "count", divisor, merged.numpy()
    )
    return merged.reshape(block.deltas.shape[1:])


def weighted(block: Block, deltas: Tensor) -> Tensor:
    """Returns each variant's deltas times its weight."""
    if all(weight == 1.0 for weight in block.weights):
        return deltas
    return torch.stack([delta * weight for delta, weight in zip(deltas, block.weights, strict=True)])


def total(deltas: Tensor) -> Tensor:
    """Returns the sum over the variants, one after another: `Tensor.sum` may pair them by block size."""
    result = deltas[0].clone()
    for delta in deltas[1:]:
        result += delta
    return result


def elect(deltas: Tensor, election: Literal["mass", "count"]) -> Tensor:
    """Returns the elected sign of each entry, −1, 0 or 1 (TIES, step 2)."""
    return total(deltas if election == "mass" else deltas.sign()).sign_()


def disjoint_mean(
    deltas: Tensor, elected: Tensor, weights: tuple[float, ...], normalize: Literal["count", "weights", "none"]
) -> Tensor:
    """Returns the sum of the entries that have the elected sign, divided as `normalize` says (TIES, step 3)."""
    # Three buffers for however many variants: their products with the elected sign are never held all at once.
    summed, divisor, agreeing = torch.zeros_like(elected), torch.zeros_like(elected), torch.empty_like(elected)
    for delta, weight in zip(deltas, weights, strict=True):
        summed += torch.mul(delta, elected, out=agreeing).relu_()
        if normalize != "none":
            divisor.add_(agreeing.sign_(), alpha=weight if normalize == "weights" else 1.0)
    summed *= elected
    # Where nothing agrees the sum is 0, and stays so divided by the smallest float there is.
    return summed if normalize == "none" else summed.div_(divisor.clamp_(min=from_bits(1)))


def mean(summed: Tensor, divisor: float) -> Tensor:
    """Returns a sum divided by a number."""
    # By a tensor: CUDA divides by a plain number as a product with its reciprocal, which rounds otherwise.
    return summed / summed.new_tensor(divisor)


def average(block: Block) -> Tensor:
    """Returns the weighted mean of the deltas."""
    return mean(total(weighted(block, block.deltas)), sum(block.weights))


def uniform(block: Block, variant: str) -> Tensor:
    """Returns a random number in [0, 1) for each entry of one variant, in the shape of its deltas.

    A hash of (seed, variant, tensor, position), so that neither blocks nor devices matter: the position times an odd
    constant plus a key, mixed by the finaliser of SplitMix64 (Steele et al., OOPSLA 2014), of which the upper 24 bits
    are taken.
    """
    name = json.dumps([block.seed, variant, block.tensor]).encode()
    key = int.from_bytes(hashlib.sha256(name).digest()[:8], "little", signed=True)
    shape = block.deltas.shape[1:]
    state = torch.arange(block.start, block.start + shape.numel(), device=block.deltas.device)
    state.mul_(_GOLDEN).add_(key)
    for shift, factor in ((30, _MIX_1), (27, _MIX_2), (31, 1)):
        # torch has no unsigned integers to shift, so the copies of the sign are masked away.
        state.bitwise_xor_((state >> shift).bitwise_and_((1 << 64 - shift) - 1)).mul_(factor)
    return ((state >> 40).bitwise_and_((1 << 24) - 1).float() * 2.0**-24).reshape(shape)


def from_bits(bits: int) -> float:
    """Returns the float32 that these bits spell."""
    return struct.unpack("<f", struct.pack("<I", bits))[0]


def _below(magnitude: float) -> float:
    """The next smaller float32 of a positive one."""
    return from_bits(struct.unpack("<I", struct.pack("<f", magnitude))[0] - 1)


def as_array(values: Tensor) -> Any:
    """The same values for numpy, which compares several times faster on a CPU; on a GPU they stay."""
    return values.numpy() if values.device.type == "cpu" else values


def as_integers(kept: Any, largest: int) -> Any:
    """The same booleans, numpy's or torch's, as integers that may be added up to `largest`."""
    if isinstance(kept, np.ndarray):
        return kept.view(np.int8) if largest < 128 else kept.astype(np.int32)
    return kept.view(torch.int8) if largest < 128 else kept.int()


def count_nonzero(values: Any) -> int:
    """Returns how many entries of an array, numpy's or torch's, are not zero or false."""
    return int(np.count_nonzero(values) if isinstance(values, np.ndarray) else torch.count_nonzero(values))

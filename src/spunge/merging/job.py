"""One merge, prepared: its variants checked against each other, and read block by block."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spunge.errors import IncompatibleTaskVectors, RecipeError
from spunge.interfaces import RETAIN, Merger, Needs, Progress, silent
from spunge.merging.grams import Grams
from spunge.merging.kernels import loops
from spunge.merging.sources import refuse_twice
from spunge.settings import name_of
from spunge.weights.checkpoint import Checkpoint
from spunge.weights.origin import check_base, common_base
from spunge.weights.safetensors_files import OpenFiles, StoredTensor, as_bytes
from spunge.weights.task_vector import ROWS, Difference, LowRank, TaskVector

BLOCK = {"cpu": 1 << 18, "cuda": 1 << 24}
"""Elements of each variant that are combined at once, by kind of device: what fits a cache, or keeps a GPU busy."""

_IN_A_LAYER = re.compile(r"\.\d+\.")

HELD = 48 << 20
"""Bytes of one tensor, in the base and all variants, up to which it is read once for both passes."""

_INHERITED = ("method", "settings", "seed", "data")  # of each variant's provenance, for the merged one's


@dataclass(frozen=True, eq=False)
class Options:
    """How a merge is computed; of these the seed alone can change what comes of it."""

    device: str = "cpu"
    seed: int = 0
    """What the random draws of dare and della depend on."""
    grams: Grams | None = None
    """For mergers that ask for them: the Gram matrices of every variant and of the retain set."""
    block: int | None = None
    """Elements of each variant combined at once; None: by the kind of device."""
    progress: Progress = silent
    """Told of every tensor."""

    @property
    def block_size(self) -> int:
        """Elements of each variant that are combined at once."""
        return self.block or BLOCK["cpu" if torch.device(self.device).type == "cpu" else "cuda"]


class _Buffers:
    """Memory that is used again: fresh pages for every block would cost as much as the arithmetic."""

    def __init__(self) -> None:
        self._held: dict[Any, Tensor] = {}

    def get(self, purpose: str, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        held = self._held.get((purpose, dtype))
        if held is None or len(held) < size:
            held = self._held[purpose, dtype] = torch.empty(size, dtype=dtype)
        return held[:size]


class _Held:
    """One tensor as it is stored, of the base and of every variant, so that a second pass over it reads no file."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._values: dict[StoredTensor, Tensor] = {}

    def take(self, tensors: Collection[StoredTensor], files: OpenFiles) -> None:
        """Reads these whole, if they are little together, in place of those before."""
        self._values = {}
        # Rounded up to 8 bytes: a view of another dtype must start at a whole number of its elements.
        sizes = [-(-(stored.stop - stored.start) // 8) * 8 for stored in tensors]
        if sum(sizes) > HELD:
            return
        if len(self._memory) < sum(sizes):
            self._memory = torch.empty(0)  # first, so that never both are held
            self._memory = torch.empty(sum(sizes), dtype=torch.uint8)
        for stored, piece in zip(tensors, self._memory[: sum(sizes)].split(sizes), strict=True):
            values = piece[: stored.stop - stored.start].view(stored.dtype)
            stored.read_into(values, 0, files)
            self._values[stored] = values

    def get(self, stored: StoredTensor) -> Tensor | None:
        return self._values.get(stored)


def layer_of(name: str) -> int | None:
    """Returns the number of the layer that a parameter is in, by the first number in its name; None outside of all."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)


@dataclass(frozen=True, eq=False)
class Job:
    """One merge, checked: everything that the passes over the data need to know."""

    merger: Merger
    needs: Needs
    variants: dict[str, TaskVector]
    shapes: dict[str, tuple[int, ...]]
    weights: tuple[float, ...]
    scale: float
    """What the merged deltas are multiplied by when they are read."""
    factored: bool
    """Whether the variants' common scale is part of `scale`, rather than applied to each."""
    base: Checkpoint | None
    options: Options
    files: OpenFiles = field(default_factory=OpenFiles)
    _buffers: _Buffers = field(default_factory=_Buffers)
    _held: _Held = field(default_factory=_Held)

    @cached_property
    def tied(self) -> Mapping[str, str]:
        """Parameter → the one whose name it is merged under, of weights that a checkpoint holds twice.

        Drawn for apart, as by DARE, or taken for matrices of different kinds, embeddings and a head that are tied would
        come out as two different weights: the loaded model has one of them, and whoever reads the files both.
        """
        base = self.base
        if base is None:
            return {}
        outside = [name for name, shape in self.shapes.items() if len(shape) == 2 and not _IN_A_LAYER.search(name)]
        tied: dict[str, str] = {}
        # Embeddings lie within the model and heads beside it, so the last in the alphabet are embeddings.
        for name in sorted(outside, reverse=True):
            tied[name] = next((first for first in tied if base.tensor(first).equals(base.tensor(name))), name)
        return tied

    def hold(self, name: str) -> None:
        """Reads one tensor whole, if it is small, as several passes will want it."""
        entries = [variant.entries.get(name) for variant in self.variants.values()]
        tensors = [entry for entry in entries if isinstance(entry, StoredTensor)]
        for entry in entries:
            if isinstance(entry, Difference):
                tensors += [entry.base, entry.changed]
        self._held.take(dict.fromkeys(tensors), self.files)  # once each: variants of one base share its tensor

    def pieces(self, name: str, granularity: str) -> Iterator[tuple[int, int]]:
        """Yields the bounds of the blocks of one tensor: whole rows, or the whole tensor, where that is asked for."""
        shape = self.shapes[name]
        size = max(math.prod(shape), 1)
        columns = shape[-1] if len(shape) > 1 else size
        unit = {"element": 1, "row": columns, "tensor": size}[granularity]
        # Thinner pieces would multiply the same sixteen rows several times over.
        if any(isinstance(variant.entries.get(name), LowRank) for variant in self.variants.values()):
            unit = max(unit, ROWS * columns)  # rows of B · A are made so many at a time
        step = max(self.options.block_size // unit, 1) * unit
        for start in range(0, math.prod(shape), step):
            yield start, min(start + step, size)

    def deltas(self, name: str, start: int, stop: int) -> Tensor:
        """Returns one block: float32 [variants, elements], zeros for a tensor that is not there; gone with the next."""
        return self.stacked(name, start, stop)[:-1]

    def stacked(self, name: str, start: int, stop: int) -> Tensor:
        """Returns the same with one more row, for the merged delta."""
        size = stop - start
        rows = self._buffers.get("rows", (len(self.variants) + 1) * size).view(-1, size)
        weight, read = torch.empty(0), None
        for row, variant in zip(rows, self.variants.values(), strict=False):
            entry = variant.entries.get(name)
            if entry is None:
                row.zero_()
            elif isinstance(entry, StoredTensor):
                row.copy_(self._stored(entry, start, size))
            elif isinstance(entry, Difference):
                if read is not entry.base:  # variants of one base: its block is read once
                    read = entry.base
                    weight = self._stored(read, start, size, "base")
                    if weight.dtype != torch.float32 and loops(weight) is None:
                        weight = self._buffers.get("converted", size).copy_(weight)
                _subtract(self._stored(entry.changed, start, size), weight, row)
            else:
                row.copy_(variant.read(name, start, stop))
            if not self.factored and variant.scale != 1.0:
                row.mul_(variant.scale)
        return rows.to(self.options.device)

    def are_bfloat16_differences(self, name: str) -> bool:
        """Whether every variant's deltas of a tensor are bfloat16 less bfloat16, for loops that take them as stored."""
        return (
            loops(torch.empty(0, device=self.options.device)) is not None
            and self.factored
            and all(
                isinstance(entry := variant.entries.get(name), Difference)
                and entry.changed.dtype == entry.base.dtype == torch.bfloat16
                for variant in self.variants.values()
            )
        )

    def bfloat16_pairs(self, name: str, start: int, stop: int) -> Iterator[tuple[Any, Any]]:
        """Yields one block of every such variant and of its base, both as uint16; gone with the next."""
        base, read = torch.empty(0), None
        for variant in self.variants.values():
            entry = variant.entries[name]
            assert isinstance(entry, Difference)
            if read is not entry.base:
                read = entry.base
                base = self._stored(read, start, stop - start, "base")
            changed = self._stored(entry.changed, start, stop - start)
            yield as_bytes(changed).view(np.uint16), as_bytes(base).view(np.uint16)

    @cached_property
    def _last_layer(self) -> int:
        """The number of the last layer, from 0: of the base, or of those that change where none is given."""
        names = self.shapes if self.base is None else self.base.tensors
        return max((number for name in names if (number := layer_of(name)) is not None), default=0)

    def layer_factor(self, name: str) -> float:
        """What the merged delta of a tensor is multiplied by for the layer it is in; λ comes on top."""
        scaling, layer = self.merger.layer_scaling, layer_of(name)
        if scaling is None or layer is None:
            return 1.0
        first, last = scaling
        return first + (last - first) * layer / max(self._last_layer, 1)

    def base_weights(self, name: str, start: int, stop: int) -> Tensor:
        """Returns one block of the base model's weights, in their own dtype; gone with the next."""
        assert self.base is not None
        return self._stored(self.base.tensor(name), start, stop - start).to(self.options.device)

    def _stored(self, tensor: StoredTensor, start: int, size: int, purpose: str = "stored") -> Tensor:
        """Returns stored values in their own dtype; gone with the next for the same purpose."""
        if (held := self._held.get(tensor)) is not None:
            return held[start : start + size]
        values = self._buffers.get(purpose, size, tensor.dtype)
        tensor.read_into(values, start, self.files)
        return values


def _subtract(changed: Tensor, base: Tensor, difference: Tensor) -> None:
    """Writes a difference of stored values in float32."""
    compiled = loops(changed, base)
    if compiled is not None and changed.dtype == base.dtype == torch.bfloat16:
        minuend, subtrahend = (as_bytes(each).view(np.uint16) for each in (changed, base))
        compiled.subtract_bfloat16(minuend, subtrahend, difference.numpy())
    elif changed.dtype == base.dtype == torch.float32:
        torch.sub(changed, base, out=difference)
    else:
        difference.copy_(changed)  # converted first: a mixed subtraction is slower
        difference.sub_(base)


def prepare(
    merger: Merger, variants: Mapping[str, TaskVector | str | Path], base: Checkpoint | None, options: Options
) -> Job:
    """Opens and checks everything that a merge needs.

    Raises:
        IncompatibleTaskVectors: The variants do not belong together or to the base.
        RecipeError: The merger's settings do not fit the variants.
    """
    if not variants:
        raise RecipeError("nothing to merge: name at least one task vector")
    refuse_twice(variants)
    # By name, not as given: a float32 sum depends on its order, and the same merge has to write the same bytes.
    opened = {
        name: variant if isinstance(variant, TaskVector) else TaskVector.open(variant)
        for name, variant in sorted(variants.items())
    }
    if merger.fits_weights:
        raise RecipeError("weights: fitted is chosen on what models forgot, so a recipe must say it: name weights")
    unknown = sorted(set(merger.named_weights) - set(opened))
    if unknown:
        raise RecipeError(f"weights: no variant is named {unknown[0]!r}; there are {', '.join(opened)}")
    weights = tuple(merger.named_weights.get(name, 1.0) for name in opened)
    if not any(weights):
        raise RecipeError("weights: all are zero, so nothing would be merged")
    needs = merger.needs()
    if needs.scope == "model" and base is None:
        raise RecipeError("scope: model counts every weight of the base model, so the base model must be given")
    if needs.grams and (lacking := [owner for owner in (*opened, RETAIN) if owner not in (options.grams or {})]):
        raise RecipeError(f"{type(merger).__name__} needs the Gram matrices of {lacking[0]!r}: merge within a recipe")
    scales = {variant.scale for variant in opened.values()}
    # A scale that all variants share stays a number, as λ does: nothing is multiplied, and its sign can be read.
    factored = len(scales) == 1
    return Job(
        merger=merger,
        needs=needs,
        variants=opened,
        # All of them fit each other before the first block is read: what is refused is refused at once.
        shapes=_shapes(opened, base),
        weights=weights,
        scale=merger.lambda_ * (scales.pop() if factored else 1.0),
        factored=factored,
        base=base,
        options=options,
    )


def _shapes(variants: Mapping[str, TaskVector], base: Checkpoint | None) -> dict[str, tuple[int, ...]]:
    """Returns the tensors to merge by name, and checks that all variants fit each other and the base."""
    shapes: dict[str, tuple[int, ...]] = {}
    owner: dict[str, str] = {}
    for variant, task_vector in variants.items():
        for name in task_vector:
            shape = tuple(task_vector.shape(name))
            if base is not None:
                if name not in base.tensors:
                    raise IncompatibleTaskVectors(
                        f"{variant}: changes {name!r}, which {base.directory} does not have: it is of another model"
                    )
                base.check(name, shape, variant)
            if shapes.setdefault(name, shape) != shape:
                raise IncompatibleTaskVectors(
                    f"{name}: the shape is {list(shapes[name])} in {owner[name]} and {list(shape)} in {variant}: they "
                    "are of different base models"
                )
            owner.setdefault(name, variant)
    check_base(variants, base)
    if not shapes:
        raise IncompatibleTaskVectors("no variant changes any weight: there is nothing to merge")
    return dict(sorted(shapes.items()))


def provenance(job: Job) -> dict[str, Any]:
    """Returns where the merged task vector comes from: method, settings, seed, variants and base."""
    common = common_base(job.variants.values())
    made: dict[str, Any] = {
        "method": name_of(job.merger),
        "settings": job.merger.dump(),
        "seed": job.options.seed,
        "variants": {
            name: {"scale": variant.scale, **{k: v for k, v in variant.provenance.items() if k in _INHERITED}}
            for name, variant in job.variants.items()
        },
    }
    if job.base is not None:
        common = common or {"id": str(job.base.directory), "revision": None, "tensors": {}}
        # `check_base` has held these against the base already: none of its tensors is read for its digest again.
        known = common["tensors"]
        made["base"] = {
            **common,
            "fingerprint": job.base.fingerprint(),
            "tensors": {name: known.get(name) or job.base.digest(name) for name in job.shapes},
        }
    elif common is not None:
        made["base"] = common
    return made

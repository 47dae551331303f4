"""The streaming merge engine: task vectors in, one out, block by block, with exact thresholds and diagnostics.

First pass (only for mergers that trim): magnitudes are counted by their bits, which gives the exact k-th largest in
bounded memory at any scope. Second pass: each block of every variant is read, combined by the merger, measured and
handed to where the result goes. Variants are always taken in the order of their names and summed one after another
in float32, so neither their order nor blocks nor threads can change a bit of the result.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from spunge import adapter
from spunge.checkpoint import INDEX, SINGLE, Checkpoint, Written, new_directory, rewrite
from spunge.errors import ArtifactError, IncompatibleTaskVectors, RecipeError
from spunge.interfaces import Block, Merger, Needs, Progress, silent
from spunge.task_vector import (
    FILE,
    ROWS,
    Difference,
    Entry,
    LowRank,
    TaskVector,
    TensorPlace,
    add,
    check_shape,
    create,
    write_manifest,
)

BLOCK = {"cpu": 1 << 17, "cuda": 1 << 24}
"""Elements of each variant that are combined at once, by kind of device: what fits a cache, or keeps a GPU busy."""

COVERAGE_FLOOR = 0.3
"""A subset of whose removal less than this is left in the merged task vector is warned of."""

_TOP = 0x7FFFFFFF  # above the bits of every finite magnitude
_BINS, _NARROW = 16, 20  # the bits of a histogram over a wide bracket, and the width of one that is counted at once
_SAMPLED, _SLICE = 1 << 16, 1 << 11
_WAITING = 1 << 17
_EXACT_SVD = 512
_GOLDEN, _MIX_1, _MIX_2 = (c - (1 << 64) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


@dataclass(frozen=True, eq=False)
class Merged:
    """What a merge gives."""

    task_vector: TaskVector
    """The merged deltas, with λ (and a scale that all variants share) as the scale."""
    diagnostics: dict[str, Any]
    """What the merge did to every variant: `overall`, by `layers`, by `tensors`, and `warnings`; JSON values."""


Grams = Mapping[str, Mapping[str, Tensor]]
"""Variant name, or `retain` → parameter name → [in, in]: see `gram_matrices`."""

RETAIN = "retain"


def merge(
    merger: Merger,
    variants: Mapping[str, TaskVector | str | Path],
    *,
    base: Checkpoint | None = None,
    device: str = "cpu",
    seed: int = 0,
    grams: Grams | None = None,
    block: int | None = None,
    progress: Progress = silent,
) -> Merged:
    """Merges task vectors into one that is held in memory.

    Args:
        merger: The method with its settings.
        variants: Name → task vector, or a task vector directory, which is streamed.
        base: The base model's files: needed to trim at the scope of the whole model, and checked against if given.
        device: Where to compute.
        seed: What the random draws of dare and della depend on.
        grams: For mergers that ask for them.
        block: Elements of each variant combined at once; changes memory and time, never the result.
        progress: Told of every tensor.

    Raises:
        IncompatibleTaskVectors: The variants do not belong together or to the base, or hold NaN or infinity.
        RecipeError: The merger's settings do not fit the variants.
    """
    job = _prepare(merger, variants, base, device, seed, grams, block)
    entries = {name: torch.empty(math.prod(shape)) for name, shape in job.shapes.items()}

    def keep(name: str, start: int, values: Tensor) -> None:
        entries[name][start : start + len(values)] = values

    diagnostics = _run(job, keep, progress)
    shaped = {name: entries[name].reshape(shape) for name, shape in job.shapes.items()}
    return Merged(TaskVector(shaped, job.scale, _provenance(job)), diagnostics)


def write(
    merger: Merger,
    variants: Mapping[str, TaskVector | str | Path],
    out: str | Path,
    *,
    base: Checkpoint,
    form: Literal["checkpoint", "task-vector"] = "checkpoint",
    card: str | None = None,
    device: str = "cpu",
    seed: int = 0,
    grams: Grams | None = None,
    block: int | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Merges task vectors straight into a new directory, in memory that does not grow with the model.

    Args:
        merger: The method with its settings.
        variants: Name → task vector, or a task vector directory.
        out: The new directory; it must not exist, and exists afterwards only if all went well.
        base: The base model's files.
        form: A checkpoint in the base's shard layout, or a task vector.
        card: The text of the checkpoint's README.md.
        device: Where to compute.
        seed: What the random draws of dare and della depend on.
        grams: For mergers that ask for them.
        block: Elements of each variant combined at once.
        progress: Told of every tensor.

    Returns:
        The diagnostics; of a checkpoint also `rounding`, the share of the delta's energy lost to the base's dtype.

    Raises:
        IncompatibleTaskVectors: The variants do not belong together or to the base, or hold NaN or infinity.
        RecipeError: The merger's settings do not fit the variants.
        ArtifactError: `out` exists or cannot be written.
    """
    job = _prepare(merger, variants, base, device, seed, grams, block)
    with new_directory(out) as building:
        if form == "task-vector":
            written = Written(create(building / FILE, job.shapes))
            diagnostics = _run(job, written.write, progress)
            provenance = {**_provenance(job), "diagnostics": diagnostics}
            write_manifest(building, provenance, scale=job.scale)
        else:
            written = Written(rewrite(base, building, job.shapes.keys()))
            rounding = _Rounding(job.scale)

            def change(name: str, start: int, values: Tensor) -> None:
                weight = base.place(name).read(start, start + len(values)).to(values.device)
                changed = add(weight, values, job.scale)
                rounding.count(weight, values, changed)
                written.write(name, start, changed)

            diagnostics = _run(job, change, progress)
            diagnostics["rounding"] = rounding.share
            if card is not None:
                (building / "README.md").write_text(card, encoding="utf-8")
        written.verify()
    return diagnostics


def write_adapter(
    merger: Merger,
    variants: Mapping[str, TaskVector | str | Path],
    out: str | Path,
    *,
    base: Checkpoint,
    rank: int = 64,
    device: str = "cpu",
    seed: int = 0,
    grams: Grams | None = None,
    block: int | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Merges into a new PEFT adapter: exact if the merger is linear and every variant low-rank, else by SVD.

    Args:
        merger: As for `write`, and likewise what is not named here.
        variants: Name → task vector, or a task vector directory.
        out: The new directory.
        base: The base model's files.
        rank: Of an adapter that is an approximation.
        device: Where to compute.
        seed: What the random draws of dare and della depend on.
        grams: For mergers that ask for them.
        block: Elements of each variant combined at once.
        progress: Told of every tensor.

    Returns:
        The diagnostics, with `exact`, and `energy`: the share of the merged delta's that the adapter keeps.

    Raises:
        IncompatibleTaskVectors: Also if a changed tensor is not the weight of a linear layer.
        RecipeError: The merger's settings do not fit the variants.
        ArtifactError: `out` exists or cannot be written.
    """
    job = _prepare(merger, variants, base, device, seed, grams, block)
    factors = _Factors(job, rank)
    with new_directory(out) as building:
        diagnostics = _run(job, factors.keep, progress)
        adapter.save(TaskVector(factors.finished()), building, base=str(base.directory))
    return {**diagnostics, "exact": factors.exact, "energy": factors.energy}


@torch.no_grad()
def gram_matrices(
    model: torch.nn.Module, names: Mapping[str, str], batches: Iterable[Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """Returns the mean of x xᵀ over the inputs x of linear layers, one for each token that is not padding.

    Args:
        model: The base model.
        names: The model's parameter name → the checkpoint's, of the matrices wanted; what is no linear layer's weight
            is passed over.
        batches: What the model is called with: `input_ids` and `attention_mask`, [batch, tokens].

    Returns:
        The checkpoint's parameter name → float32 [in, in].
    """
    sums: dict[str, Tensor] = {}
    mask = torch.empty(0)
    tokens = 0

    def watch(name: str) -> Callable[[torch.nn.Module, tuple[Tensor, ...]], None]:
        def add_inputs(_: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen = inputs[0][mask].float()
            sums[name] = sums.get(name, 0) + seen.T @ seen

        return add_inputs

    modules = dict(model.named_modules())
    hooks = []
    for ours, theirs in names.items():
        module = modules.get(ours.removesuffix(".weight"))
        if isinstance(module, torch.nn.Linear) and ours.endswith(".weight"):
            hooks.append(module.register_forward_pre_hook(watch(theirs)))
    try:
        for batch in batches:
            mask = batch["attention_mask"].bool()
            tokens += int(mask.sum())
            model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: summed / tokens for name, summed in sums.items()}


def open_variant(path: str | Path, base: Checkpoint) -> TaskVector:
    """Opens a task vector directory, a PEFT adapter or a Hugging Face checkpoint of the same base, to be streamed.

    Raises:
        ArtifactError: It is none of these, or damaged.
        IncompatibleTaskVectors: It does not fit the base model.
    """
    path = Path(path)
    if not path.is_dir():
        raise ArtifactError(f"{path}: no such directory; a variant is a task vector, an adapter or a checkpoint")
    if (path / FILE).exists():
        task_vector = TaskVector.open(path)
        for name in task_vector:
            check_shape(name, base.place(name).shape, task_vector.shape(name), str(path))
        return task_vector
    if adapter.is_adapter(path):
        return adapter.read(path, base)
    if (path / INDEX).exists() or (path / SINGLE).exists():
        return _difference(Checkpoint.open(path), base)
    raise ArtifactError(
        f"{path}: neither a task vector ({FILE}), nor an adapter ({adapter.CONFIG}), nor a checkpoint ({SINGLE})"
    )


def open_variants(paths: Sequence[str | Path], base: Checkpoint) -> dict[str, TaskVector]:
    """Opens variants under the names of their directories; where two are equal, under their paths as given.

    Raises:
        IncompatibleTaskVectors: The same directory is named twice, or one does not fit the base model.
        ArtifactError: One is no variant, or damaged.
    """
    names = [Path(path).resolve().name for path in paths]
    named: dict[str, str | Path] = {}
    for name, path in zip(names, paths, strict=True):
        named[name if names.count(name) == 1 else str(path)] = path
    if len(named) < len(paths):
        raise IncompatibleTaskVectors("the same variant is named twice; name each once")
    _refuse_twice(named)
    return {name: open_variant(path, base) for name, path in named.items()}


def _difference(variant: Checkpoint, base: Checkpoint) -> TaskVector:
    """A checkpoint minus the base: only what differs, found without reading further than the first difference."""
    missing = [name for name in base.places if name not in variant.places]
    extra = [name for name in variant.places if name not in base.places]
    entries: dict[str, Entry] = {}
    for name, place in sorted(base.places.items()):
        other = variant.places.get(name)
        if other is None:
            continue
        check_shape(name, place.shape, other.shape, str(variant.directory))
        if other.equals(place):
            continue
        if not (place.dtype.is_floating_point and other.dtype.is_floating_point):
            raise IncompatibleTaskVectors(f"{name}: {variant.directory} differs in a tensor of {place.dtype}")
        entries[name] = Difference(other, place)
    # Tied weights may be stored once or twice, so a tensor may be lacking if it is a copy of one that is there.
    for name in missing:
        if not _copied(name, base):
            raise IncompatibleTaskVectors(f"{variant.directory}: lacks {name!r}, which {base.directory} has")
    for name in extra:
        if not _copied(name, variant):
            raise IncompatibleTaskVectors(f"{variant.directory}: has {name!r}, which {base.directory} lacks")
    return TaskVector(entries, 1.0, {"settings": {"checkpoint": variant.directory.name}})


def _copied(name: str, checkpoint: Checkpoint) -> bool:
    place = checkpoint.places[name]
    others = (other for known, other in checkpoint.places.items() if known != name)
    return any(other.equals(place) for other in others)


# --- The arithmetic that mergers share: pure functions on a block -----------------------------------------------------


def trimmed(block: Block) -> Tensor:
    """Returns the deltas with everything under each variant's threshold set to zero (TIES, step 1)."""
    kept = torch.empty_like(block.deltas)
    for row, delta, (threshold, *_) in zip(kept, block.deltas, block.thresholds, strict=True):
        # hardshrink keeps what is strictly greater, so it is given the float just below the threshold.
        torch.hardshrink(delta, lambd=_below(threshold), out=row)
    return kept


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
    summed, divisor, agreeing = torch.zeros_like(elected), torch.zeros_like(elected), torch.empty_like(elected)
    for delta, weight in zip(deltas, weights, strict=True):
        summed += torch.mul(delta, elected, out=agreeing).relu_()
        if normalize != "none":
            divisor.add_(agreeing.sign_(), alpha=weight if normalize == "weights" else 1.0)
    summed *= elected
    # Where nothing agrees the sum is 0, and stays so divided by the smallest float there is.
    return summed if normalize == "none" else summed.div_(divisor.clamp_(min=_float(1)))


def mean(summed: Tensor, divisor: float) -> Tensor:
    """Returns a sum divided by a number."""
    # By a tensor: CUDA divides by a plain number as a product with its reciprocal, which rounds otherwise.
    return summed / summed.new_tensor(divisor)


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


# --- Preparing --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Job:
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
    device: str
    seed: int
    grams: Grams | None
    block: int

    def pieces(self, name: str, granularity: str) -> Iterator[tuple[int, int]]:
        """Yields the bounds of the blocks of one tensor: whole rows, or the whole tensor, where that is asked for."""
        shape = self.shapes[name]
        size = max(math.prod(shape), 1)
        columns = shape[-1] if len(shape) > 1 else size
        unit = {"element": 1, "row": columns, "tensor": size}[granularity]
        if any(isinstance(variant.entries.get(name), LowRank) for variant in self.variants.values()):
            unit = max(unit, ROWS * columns)  # rows of B · A are made so many at a time
        step = max(self.block // unit, 1) * unit
        for start in range(0, math.prod(shape), step):
            yield start, min(start + step, size)

    def deltas(self, name: str, start: int, stop: int) -> Tensor:
        """Returns one block: float32 [variants, elements], zero for a variant without this tensor."""
        return self.stacked(name, start, stop)[:-1]

    def stacked(self, name: str, start: int, stop: int) -> Tensor:
        """Returns the same with one more row, for the merged delta."""
        rows = torch.empty(len(self.variants) + 1, stop - start)
        base: tuple[TensorPlace, Tensor] | None = None
        for row, variant in zip(rows[:-1], self.variants.values(), strict=True):
            entry = variant.entries.get(name)
            if entry is None:
                row.zero_()
                continue
            if isinstance(entry, Difference):
                if base is None or base[0] != entry.base:  # variants of one base: its block is read once
                    base = entry.base, entry.base.read(start, stop).float()
                torch.sub(entry.changed.read(start, stop).float(), base[1], out=row)
            else:
                row.copy_(variant.read(name, start, stop))
            if not self.factored and variant.scale != 1.0:
                row.mul_(variant.scale)
        return rows.to(self.device)


def _prepare(
    merger: Merger,
    variants: Mapping[str, TaskVector | str | Path],
    base: Checkpoint | None,
    device: str,
    seed: int,
    grams: Grams | None,
    block: int | None,
) -> _Job:
    if not variants:
        raise RecipeError("nothing to merge: name at least one task vector")
    _refuse_twice(variants)
    opened = {
        name: variant if isinstance(variant, TaskVector) else TaskVector.open(variant)
        for name, variant in sorted(variants.items())
    }
    unknown = sorted(set(merger.weights) - set(opened))
    if unknown:
        raise RecipeError(f"weights: no variant is named {unknown[0]!r}; there are {', '.join(opened)}")
    weights = tuple(merger.weights.get(name, 1.0) for name in opened)
    if not any(weights):
        raise RecipeError("weights: all are zero, so nothing would be merged")
    needs = merger.needs()
    if needs.scope == "model" and base is None:
        raise RecipeError("scope: model counts every weight of the base model, so the base model must be given")
    if needs.grams and (lacking := [owner for owner in (*opened, RETAIN) if owner not in (grams or {})]):
        raise RecipeError(f"{type(merger).__name__} needs the Gram matrices of {lacking[0]!r}: merge within a recipe")
    scales = {variant.scale for variant in opened.values()}
    factored = len(scales) == 1
    return _Job(
        merger=merger,
        needs=needs,
        variants=opened,
        shapes=_shapes(opened, base),
        weights=weights,
        scale=merger.lambda_ * (scales.pop() if factored else 1.0),
        factored=factored,
        base=base,
        device=device,
        seed=seed,
        grams=grams,
        block=block or BLOCK["cpu" if torch.device(device).type == "cpu" else "cuda"],
    )


def _refuse_twice(variants: Mapping[str, TaskVector | str | Path]) -> None:
    seen: dict[Any, str] = {}
    for name, variant in variants.items():
        key = id(variant) if isinstance(variant, TaskVector) else Path(variant).resolve()
        if key in seen:
            raise IncompatibleTaskVectors(f"variants {seen[key]!r} and {name!r} are the same; name each once")
        seen[key] = name


def _shapes(variants: Mapping[str, TaskVector], base: Checkpoint | None) -> dict[str, tuple[int, ...]]:
    """Returns the tensors to merge by name, and checks that all variants fit each other and the base."""
    shapes: dict[str, tuple[int, ...]] = {}
    owner: dict[str, str] = {}
    for variant, task_vector in variants.items():
        for name in task_vector:
            shape = tuple(task_vector.shape(name))
            if base is not None:
                if name not in base.places:
                    raise IncompatibleTaskVectors(
                        f"{variant}: changes {name!r}, which {base.directory} does not have: it is of another model"
                    )
                check_shape(name, base.places[name].shape, shape, variant)
            if shapes.setdefault(name, shape) != shape:
                raise IncompatibleTaskVectors(
                    f"{name}: the shape is {list(shapes[name])} in {owner[name]} and {list(shape)} in {variant}"
                )
            owner.setdefault(name, variant)
    check_base(variants, base)
    if not shapes:
        raise IncompatibleTaskVectors("no variant changes any weight: there is nothing to merge")
    return dict(sorted(shapes.items()))


def check_base(variants: Mapping[str, TaskVector], base: Checkpoint | None) -> None:
    """Raises IncompatibleTaskVectors unless all variants were made from the same base tensors."""
    digests: dict[str, tuple[str, str]] = {}
    undigested: dict[tuple[Any, Any], str] = {}
    for variant, task_vector in variants.items():
        made_from = task_vector.provenance.get("base")
        if not isinstance(made_from, Mapping):
            continue
        tensors = made_from.get("tensors") or {}
        for name, digest in tensors.items():
            other, seen = digests.setdefault(name, (variant, digest))
            if seen != digest:
                raise IncompatibleTaskVectors(f"{name}: {other} and {variant} were made from different base models")
        if not tensors:
            undigested[made_from.get("id"), made_from.get("revision")] = variant
    if len(undigested) > 1:
        (one, first), (two, second) = list(undigested.items())[:2]
        raise IncompatibleTaskVectors(
            f"{first} and {second} were made from different base models: {_at(*one)} and {_at(*two)}"
        )
    if base is not None:
        for name, (variant, digest) in digests.items():
            if name not in base.places or base.digest(name) != digest:
                raise IncompatibleTaskVectors(
                    f"{name}: {variant} was made from another base model than {base.directory}"
                )


def _at(name: Any, revision: Any) -> str:
    return str(name) if revision is None else f"{name}@{revision}"


def _provenance(job: _Job) -> dict[str, Any]:
    bases = [v.provenance["base"] for v in job.variants.values() if isinstance(v.provenance.get("base"), Mapping)]
    provenance: dict[str, Any] = {
        "method": job.merger.dump().get("method", type(job.merger).__qualname__),
        "settings": job.merger.dump(),
        "seed": job.seed,
        "variants": {
            name: {"scale": variant.scale, **{k: v for k, v in variant.provenance.items() if k in _INHERITED}}
            for name, variant in job.variants.items()
        },
    }
    if bases:
        tensors = {name: digest for base in bases for name, digest in (base.get("tensors") or {}).items()}
        provenance["base"] = {**bases[0], "tensors": tensors}
    elif job.base is not None:
        tensors = {name: job.base.digest(name) for name in job.shapes}
        provenance["base"] = {"id": str(job.base.directory), "revision": None, "tensors": tensors}
    return provenance


_INHERITED = ("method", "settings", "seed", "data")


# --- The first pass: exact thresholds ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Thresholds:
    """What trimming keeps of each variant."""

    kept: tuple[tuple[float, ...], ...]
    """[variants][densities]: the smallest magnitude that is kept."""
    largest: tuple[float, ...]
    """[variants]: the magnitude of the int(density · n)-th largest entry at the first density, at which ties tie."""


def _thresholds(job: _Job, names: Sequence[str], size: int) -> _Thresholds:
    """Finds the exact thresholds over some tensors taken as one, of `size` elements with those that nobody changes."""
    entries = sum(math.prod(job.shapes[name]) for name in names)
    counts = [max(1, int(density * size)) for density in job.needs.densities]
    searches = [[_Search(count) for count in counts] for _ in job.variants]
    if any(count < entries for count in counts):
        sample, complete = _sample(job, names, entries)
        for row, drawn in zip(searches, sample, strict=True):
            for search in row:
                search.guess(drawn, entries, complete)
    running = [search for row in searches for search in row if search.count < entries]
    while running:
        for name in names:
            for start, stop in job.pieces(name, "element"):
                for row, magnitudes in zip(searches, _magnitudes(job, name, start, stop), strict=True):
                    for search in row:
                        if search in running:
                            search.add(magnitudes)
        running = [search for search in running if not search.narrow()]
    exclude = job.needs.threshold_ties == "exclude"
    kept = tuple(tuple(_float(search.smallest_kept(exclude)) for search in row) for row in searches)
    return _Thresholds(kept, tuple(_float(row[0].found) for row in searches))


class _Search:
    """Finds the `count`-th largest of one variant's magnitudes, exactly, in memory that does not grow with them.

    Magnitudes are taken as the integers that their float32 bits spell: the order is the same. Those in a bracket are
    counted bin by bin, the bracket narrows to the bin that holds the wanted one, and so on until a bin is one float:
    at most two passes over the data, and mostly one, since a sample tells roughly where to look.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.found = 0
        """The `count`-th largest magnitude's bits; 0 as long as everything that is not zero is kept."""
        self._over = False
        self._look(0, _TOP)

    def guess(self, sample: np.ndarray, entries: int, complete: bool) -> None:
        """Sets the first bracket by a sorted sample of the entries."""
        rank = self.count * len(sample) / entries
        margin = 0 if complete else 4 * math.sqrt(max(rank * (1 - rank / len(sample)), 0)) + 1
        low, high = len(sample) - math.ceil(rank + margin), len(sample) - math.floor(rank - margin)
        self._look(
            int(sample[low]) if low >= 0 else 0,
            int(sample[min(high, len(sample) - 1)]) + 1 if high < len(sample) or complete else _TOP,
        )

    def add(self, magnitudes: Tensor) -> None:
        """Counts one block."""
        bits = _array(magnitudes)
        self._above += _count(bits >= self._high)
        within = (bits >= self._low) & (bits < self._high)
        inside = bits.compress(within) if isinstance(bits, np.ndarray) else bits[within].cpu().numpy()
        self._pending.append(inside)
        self._waiting += len(inside)
        if self._waiting >= _WAITING:  # so that a wide histogram is not walked through for every block
            self._count_pending()

    def narrow(self) -> bool:
        """Looks at what was counted; True if the magnitude is found, else another pass is needed."""
        self._count_pending()
        from_top = np.cumsum(self._histogram[::-1]) + self._above
        if not self._above < self.count <= from_top[-1]:
            assert (self._low, self._high) != (0, _TOP), "there are at least `count` entries"
            self._look(0, _TOP)  # the sample misled: start over without it
            return False
        position = int(np.searchsorted(from_top, self.count))
        low = self._low + (len(self._histogram) - 1 - position << self._shift)
        if self._shift:
            self._look(low, min(low + (1 << self._shift), _TOP))
            return False
        self.found = low
        self._over = from_top[position] > self.count
        return True

    def smallest_kept(self, exclude: bool) -> int:
        """Returns the smallest magnitude to keep: never zero, and above a tie if that is to be excluded."""
        return max(self.found + (1 if exclude and self._over else 0), 1)

    def _look(self, low: int, high: int) -> None:
        self._low, self._high = low, high
        span = high - low
        # A narrow bracket is counted float by float at once; a wide one in bins.
        self._shift = 0 if span <= 1 << _NARROW else max((span - 1).bit_length() - _BINS, 0)
        self._histogram = np.zeros(((span - 1) >> self._shift) + 1, np.int64)
        self._above = self._waiting = 0
        self._pending: list[np.ndarray] = []

    def _count_pending(self) -> None:
        if self._pending:
            bins = (np.concatenate(self._pending) - self._low) >> self._shift
            self._histogram += np.bincount(bins, minlength=len(self._histogram))
        self._pending, self._waiting = [], 0


def _sample(job: _Job, names: Sequence[str], entries: int) -> tuple[list[np.ndarray], bool]:
    """Returns sorted magnitudes of each variant from evenly spaced places, and whether these are all there are."""
    complete = entries <= _SAMPLED
    step = 1 if complete else entries * _SLICE // _SAMPLED
    pieces: list[Tensor] = []
    offset = 0
    for name in names:
        size = math.prod(job.shapes[name])
        if complete:
            pieces.append(_magnitudes(job, name, 0, size))
        else:
            for start in range(-offset % step, size, step):
                pieces.append(_magnitudes(job, name, start, min(start + _SLICE, size)))
        offset += size
    return [np.sort(row) for row in torch.cat(pieces, 1).cpu().numpy()], complete


def _magnitudes(job: _Job, name: str, start: int, stop: int) -> Tensor:
    """The bits of each delta's magnitude, as integers: for floats of one sign they are in the same order."""
    return job.deltas(name, start, stop).abs_().view(torch.int32)


def _float(bits: int) -> float:
    return struct.unpack("<f", struct.pack("<I", bits))[0]


def _below(magnitude: float) -> float:
    """The next smaller float32 of a positive one."""
    return _float(struct.unpack("<I", struct.pack("<f", magnitude))[0] - 1)


def _refuse_infinite(job: _Job, name: str) -> None:
    for start, stop in job.pieces(name, "element"):
        for variant, delta in zip(job.variants, job.deltas(name, start, stop), strict=True):
            if not delta.isfinite().all():
                raise IncompatibleTaskVectors(f"{name}: {variant} holds NaN or infinity; its training diverged?")


# --- The second pass --------------------------------------------------------------------------------------------------


def _run(job: _Job, keep: Callable[[str, int, Tensor], None], progress: Progress) -> dict[str, Any]:
    """Combines everything, block by block, and hands it to `keep`; returns the diagnostics."""
    everywhere = None
    if job.needs.densities and job.needs.scope != "tensor":
        everywhere = _thresholds(job, list(job.shapes), _scope_size(job))
    tensors: dict[str, _Measures] = {}
    for done, (name, shape) in enumerate(job.shapes.items()):
        progress("merge", done, len(job.shapes))
        thresholds = everywhere
        if job.needs.densities and thresholds is None:
            thresholds = _thresholds(job, [name], math.prod(shape))
        measures = tensors[name] = _Measures(len(job.variants))
        grams = _grams_of(job, name) if job.needs.grams else None
        for start, stop in job.pieces(name, job.needs.granularity):
            stacked = job.stacked(name, start, stop)
            deltas = stacked[:-1]
            merged = job.merger.combine(
                Block(
                    deltas=deltas if job.needs.granularity == "element" else deltas.reshape(_blocked(deltas, shape)),
                    weights=job.weights,
                    thresholds=thresholds.kept if thresholds else (),
                    variants=tuple(job.variants),
                    tensor=name,
                    start=start,
                    seed=job.seed,
                    grams=grams,
                )
            ).reshape(-1)
            stacked[-1] = merged
            measures.add(stacked, thresholds)
            keep(name, start, merged)
        if not measures.gram.isfinite().all():
            _refuse_infinite(job, name)
    progress("merge", len(job.shapes), len(job.shapes))
    return _diagnostics(job, tensors)


def _scope_size(job: _Job) -> int:
    if job.needs.scope == "model":
        assert job.base is not None
        return sum(math.prod(place.shape) for place in job.base.places.values() if place.dtype.is_floating_point)
    return sum(math.prod(shape) for name, shape in job.shapes.items() if _differs(job, name))


def _differs(job: _Job, name: str) -> bool:
    """Whether any variant changes this tensor: one that stores nothing but zeros does not."""
    return any(bool(job.deltas(name, *piece).any()) for piece in job.pieces(name, "element"))


def _blocked(deltas: Tensor, shape: tuple[int, ...]) -> tuple[int, int, int]:
    columns = shape[-1] if len(shape) > 1 else deltas.shape[1]
    return len(deltas), deltas.shape[1] // columns, columns


def _grams_of(job: _Job, name: str) -> tuple[Tensor, ...] | None:
    assert job.grams is not None
    owners = [*job.variants, RETAIN]
    if not all(name in job.grams[owner] for owner in owners):
        return None
    return tuple(job.grams[owner][name].to(job.device) for owner in owners)


# --- Merging into an adapter ------------------------------------------------------------------------------------------


class _Factors:
    """Turns merged deltas into LoRA factors, one tensor at a time: concatenated where that is exact, else by SVD."""

    def __init__(self, job: _Job, rank: int) -> None:
        for name, shape in job.shapes.items():
            adapter.check_target(name, shape)
        self._job = job
        self._rank = rank
        self._transposed = job.base is not None and adapter.stores_transposed(job.base)
        self._factors: dict[str, LowRank] = {}
        self._name, self._dense = "", torch.empty(0)
        self._kept = self._whole = 0.0
        entries = [entry for variant in job.variants.values() for entry in variant.entries.values()]
        self.exact = job.needs.linear and all(isinstance(entry, LowRank) for entry in entries)

    def keep(self, name: str, start: int, values: Tensor) -> None:
        if self.exact:
            return
        if name != self._name:
            self._split()
            self._name, self._dense = name, values.new_empty(math.prod(self._job.shapes[name]))
        self._dense[start : start + len(values)] = values

    def finished(self) -> dict[str, LowRank]:
        if self.exact:
            return {name: self._concatenated(name) for name in self._job.shapes}
        self._split()
        return self._factors

    @property
    def energy(self) -> float | None:
        return 1.0 if self.exact else _rounded(_ratio(self._kept, self._whole))

    def _split(self) -> None:
        if not self._name:
            return
        matrix = self._dense.reshape(self._job.shapes[self._name])
        left, values, right = leading_svd(matrix.T if self._transposed else matrix, self._rank)
        self._whole += float(matrix.double().square().sum())
        self._kept += float(values.double().square().sum())
        root = values.sqrt()
        self._factors[self._name] = LowRank(
            (root[:, None] * right.T).cpu(), (left * root * self._job.scale).cpu(), 1.0, self._transposed
        )

    def _concatenated(self, name: str) -> LowRank:
        """The exact merge of low-rank deltas: Σ cᵢ sᵢ Bᵢ Aᵢ is one product of stacked factors."""
        job = self._job
        # A linear merger shows its coefficients when each variant is a unit.
        unit = torch.eye(len(job.variants))
        coefficients = job.merger.combine(Block(unit, job.weights, (), tuple(job.variants), name, 0, job.seed))
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
    start = torch.randn(matrix.shape[1], rank + 16, generator=torch.Generator().manual_seed(0)).to(matrix.device)
    basis = torch.linalg.qr(matrix @ start).Q
    for _ in range(4):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
    left, values, right = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return (basis @ left)[:, :rank], values[:rank], right[:rank].T


# --- Diagnostics ------------------------------------------------------------------------------------------------------


def _array(values: Tensor) -> Any:
    """The same values for numpy, which compares several times faster on a CPU; on a GPU they stay."""
    return values.numpy() if values.device.type == "cpu" else values


def _count(condition: Any) -> int:
    return int(np.count_nonzero(condition) if isinstance(condition, np.ndarray) else condition.sum())


class _Measures:
    """Sums over entries from which all diagnostics follow; those of several tensors add up."""

    def __init__(self, variants: int) -> None:
        self.gram = torch.zeros(variants + 1, variants + 1, dtype=torch.float64)
        """Inner products of the variants and, last, the merged delta."""
        self.changed = 0
        """Entries that any variant changes."""
        self.conflicting = 0
        """Entries that one variant raises and another lowers."""
        self.nonzero = torch.zeros(variants, dtype=torch.int64)
        self.kept = torch.zeros(variants, dtype=torch.int64)
        self.tied = torch.zeros(variants, dtype=torch.int64)

    def add(self, stacked: Tensor, thresholds: _Thresholds | None) -> None:
        """Counts one block: the variants' deltas and, last, the merged one."""
        self.gram += (stacked @ stacked.T).double().cpu()
        deltas = stacked[:-1]
        raised, lowered = _array(deltas.amax(0)) > 0, _array(deltas.amin(0)) < 0
        self.changed += _count(raised | lowered)
        self.conflicting += _count(raised & lowered)
        if thresholds is not None:
            for row, (kept, tied) in enumerate(zip(thresholds.kept, thresholds.largest, strict=True)):
                magnitudes = _array(deltas[row].abs())
                self.nonzero[row] += _count(magnitudes > 0)
                self.kept[row] += _count(magnitudes >= kept[0])
                self.tied[row] += _count(magnitudes == tied) if tied else 0

    def __add__(self, other: _Measures) -> _Measures:
        result = _Measures(len(self.nonzero))
        for name in vars(result):
            setattr(result, name, getattr(self, name) + getattr(other, name))
        return result


def _diagnostics(job: _Job, tensors: Mapping[str, _Measures]) -> dict[str, Any]:
    layers: dict[str, _Measures] = {}
    overall = _Measures(len(job.variants))
    for name, measures in tensors.items():
        overall += measures
        numbered = re.search(r"\.(\d+)\.", f".{name}")
        if numbered:
            layer = numbered[1]
            layers[layer] = layers[layer] + measures if layer in layers else measures
    for variant, kept, nonzero in zip(job.variants, overall.kept, overall.nonzero, strict=True):
        if nonzero and not kept:
            raise RecipeError(
                f"density: trimming keeps nothing of {variant!r}; raise it, or let threshold_ties include"
            )
    summary = _summary(job, overall)
    warnings = [
        f"{variant}: only {share:.0%} of this removal is left in the merged task vector; "
        "raise lambda or density, or see what it conflicts with"
        for variant, share in summary["coverage"].items()
        if share is not None and share < COVERAGE_FLOOR
    ]
    return {
        "variants": list(job.variants),
        "overall": summary,
        "layers": {layer: _summary(job, layers[layer]) for layer in sorted(layers, key=int)},
        "tensors": {name: _summary(job, measures) for name, measures in tensors.items()},
        "warnings": warnings,
    }


def _summary(job: _Job, measures: _Measures) -> dict[str, Any]:
    # The merged delta is multiplied by λ when read, and by a common scale only as the variants are too.
    factor = job.merger.lambda_
    shared = abs(job.scale / factor) if factor and job.factored else 1.0
    gram = measures.gram.tolist()
    names, merged = list(job.variants), len(job.variants)
    norms = [math.sqrt(gram[i][i]) for i in range(merged)]
    merged_norm = abs(factor) * math.sqrt(gram[merged][merged])
    mean_norm = sum(norms) / merged
    by_name: dict[str, Callable[[int], float | None]] = {
        "norms": lambda i: norms[i] * shared,
        "coverage": lambda i: _ratio(factor * gram[i][merged], gram[i][i]),
    }
    if job.needs.densities:
        by_name["kept"] = lambda i: _ratio(int(measures.kept[i]), int(measures.nonzero[i]))
        by_name["tied"] = lambda i: _ratio(int(measures.tied[i]), int(measures.nonzero[i]))
    summary: dict[str, Any] = {
        what: {name: _rounded(value(i)) for i, name in enumerate(names)} for what, value in by_name.items()
    }
    summary["cosines"] = {
        one: {two: _rounded(_ratio(gram[i][j], norms[i] * norms[j])) for j, two in enumerate(names) if j > i}
        for i, one in enumerate(names[:-1])
    }
    summary["sign_conflict"] = _rounded(_ratio(measures.conflicting, measures.changed))
    summary["merged_norm"] = _rounded(merged_norm * shared)
    summary["norm_ratio"] = _rounded(_ratio(merged_norm, mean_norm))
    return summary


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator else None


def _rounded(value: float | None) -> float | None:
    """Six digits: the sums behind a diagnostic may depend on blocks and threads in the last of float32's seven."""
    return None if value is None else float(f"{value:.6g}")


class _Rounding:
    """The share of the delta's energy that is lost when base + delta is rounded to the base's dtype."""

    def __init__(self, scale: float) -> None:
        self._scale = scale
        self._lost = self._whole = 0.0

    def count(self, weight: Tensor, delta: Tensor, changed: Tensor) -> None:
        wanted = delta * self._scale
        lost = (changed.float() - weight.float()).sub_(wanted)
        self._lost += float(torch.dot(lost, lost))
        self._whole += float(torch.dot(wanted, wanted))

    @property
    def share(self) -> float | None:
        return _rounded(_ratio(self._lost, self._whole))

"""The second pass: every block is read, combined by the merger, measured and written where the result goes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from spunge.errors import IncompatibleTaskVectors
from spunge.files import new_directory
from spunge.interfaces import RETAIN, Block, Merger, Progress, silent
from spunge.merging.diagnostics import Measures, Rounding, summarise
from spunge.merging.factors import Factors
from spunge.merging.grams import Grams
from spunge.merging.job import Job, prepare, provenance
from spunge.merging.thresholds import find_thresholds
from spunge.weights import adapter
from spunge.weights.checkpoint import Checkpoint, TensorWriter, refuse_overflow, rewrite
from spunge.weights.safetensors_files import create
from spunge.weights.task_vector import FILE, TaskVector, add, write_manifest


@dataclass(frozen=True, eq=False)
class Merged:
    """What a merge gives."""

    task_vector: TaskVector
    """The merged deltas, with λ (and a scale that all variants share) as the scale."""
    diagnostics: dict[str, Any]
    """What the merge did to every variant: `overall`, by `layers`, by `tensors`, and `warnings`; JSON values."""


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
    job = prepare(merger, variants, base, device, seed, grams, block)
    entries = {name: torch.empty(math.prod(shape)) for name, shape in job.shapes.items()}

    def keep(name: str, start: int, values: Tensor) -> None:
        entries[name][start : start + len(values)] = values

    diagnostics = run(job, keep, progress)
    shaped = {name: entries[name].reshape(shape) for name, shape in job.shapes.items()}
    return Merged(TaskVector(shaped, job.scale, provenance(job)), diagnostics)


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
    job = prepare(merger, variants, base, device, seed, grams, block)
    with new_directory(out) as building:
        if form == "task-vector":
            written = TensorWriter(create(building / FILE, job.shapes))
            diagnostics = run(job, written.write, progress)
            write_manifest(building, {**provenance(job), "diagnostics": diagnostics}, scale=job.scale)
        else:
            written = TensorWriter(rewrite(base, building, job.shapes.keys()))
            rounding = Rounding(job.scale)

            def change(name: str, start: int, values: Tensor) -> None:
                weight = job.weights_of(name, start, start + len(values))
                changed = add(weight, values, job.scale)
                refuse_overflow(name, changed)
                rounding.count(weight, values, changed)
                written.write(name, start, changed)

            diagnostics = run(job, change, progress)
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
    model: str | None = None,
    names: Mapping[str, str] | None = None,
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
        model: What the adapter calls its base model; None: the directory of `base`.
        names: Of every linear layer's weight, the checkpoint's name → the loaded model's, which is what PEFT looks
            for; None: they are the same.
        device: Where to compute.
        seed: What the random draws of dare and della depend on.
        grams: For mergers that ask for them.
        block: Elements of each variant combined at once.
        progress: Told of every tensor.

    Returns:
        The diagnostics, with `exact`, and `energy`: the share of the merged delta's that the adapter keeps.

    Raises:
        IncompatibleTaskVectors: Also if a changed tensor is not the weight of a linear layer, or not in `names`.
        RecipeError: The merger's settings do not fit the variants.
        ArtifactError: `out` exists or cannot be written.
    """
    job = prepare(merger, variants, base, device, seed, grams, block)
    factors = Factors(job, rank, names)
    with new_directory(out) as building:
        diagnostics = run(job, factors.keep, progress)
        adapter.save(TaskVector(factors.finished()), building, base=model or str(base.directory), names=names)
    return {**diagnostics, "exact": factors.exact, "energy": factors.energy}


def run(job: Job, keep: Callable[[str, int, Tensor], None], progress: Progress) -> dict[str, Any]:
    """Combines everything, block by block, and hands it to `keep`; returns the diagnostics."""
    # glibc gives freed memory back to the system above a limit, so that every block would fault its pages in again. The
    # limit rises with the largest mapping that was freed, to 32 MiB at most: one that is never touched costs nothing.
    torch.empty((32 << 20) - (1 << 16), dtype=torch.uint8)
    with job.files:
        return _run(job, keep, progress)


def _run(job: Job, keep: Callable[[str, int, Tensor], None], progress: Progress) -> dict[str, Any]:
    everywhere = None
    if job.needs.densities and job.needs.scope != "tensor":
        everywhere = replace(find_thresholds(job, list(job.shapes), _scope_size(job)), counts=None)
    # All at once: what is small and stays, made between blocks, would split the memory that the next block could reuse.
    tensors = {name: Measures(len(job.variants)) for name in job.shapes}
    for done, (name, shape) in enumerate(job.shapes.items()):
        progress("merge", done, len(job.shapes))
        thresholds = everywhere
        if job.needs.densities and thresholds is None:
            job.hold(name)
            thresholds = find_thresholds(job, [name], math.prod(shape))
        measures = tensors[name]
        if thresholds is not None:
            measures.take(thresholds.counts or ())
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
                    shape=shape,
                    start=start,
                    seed=job.seed,
                    grams=grams,
                )
            ).reshape(-1)
            stacked[-1] = merged
            measures.add(stacked, thresholds)
            if not measures.gram.isfinite().all():
                _refuse_infinite(job, name, stacked)
            keep(name, start, merged)
    progress("merge", len(job.shapes), len(job.shapes))
    return summarise(job, tensors)


def _scope_size(job: Job) -> int:
    if job.needs.scope == "model":
        assert job.base is not None
        return sum(math.prod(place.shape) for place in job.base.tensors.values() if place.dtype.is_floating_point)
    return sum(math.prod(shape) for name, shape in job.shapes.items() if _differs(job, name))


def _differs(job: Job, name: str) -> bool:
    """Whether any variant changes this tensor: one that stores nothing but zeros does not."""
    return any(bool(job.deltas(name, *piece).any()) for piece in job.pieces(name, "element"))


def _blocked(deltas: Tensor, shape: tuple[int, ...]) -> tuple[int, int, int]:
    columns = shape[-1] if len(shape) > 1 else deltas.shape[1]
    return len(deltas), deltas.shape[1] // columns, columns


def _grams_of(job: Job, name: str) -> tuple[Tensor, ...] | None:
    assert job.grams is not None
    owners = [*job.variants, RETAIN]
    if not all(name in job.grams[owner] for owner in owners):
        return None
    return tuple(job.grams[owner][name].to(job.device) for owner in owners)


def _refuse_infinite(job: Job, name: str, stacked: Tensor) -> None:
    for variant, delta in zip(job.variants, stacked, strict=False):
        if not delta.isfinite().all():
            raise IncompatibleTaskVectors(f"{name}: {variant} holds NaN or infinity; its training diverged?")
    if not stacked[-1].isfinite().all():
        raise IncompatibleTaskVectors(f"{name}: the merged delta is infinite somewhere; lower the weights")

"""The second pass: every block is read, combined by the merger, measured and written where the result goes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spunge.errors import IncompatibleTaskVectors
from spunge.files import new_directory
from spunge.interfaces import RETAIN, Block, Merger
from spunge.merging.destinations import AsCheckpoint, Form
from spunge.merging.diagnostics import Measures, summarise
from spunge.merging.job import Job, Options, prepare, provenance
from spunge.merging.kernels import load_loops
from spunge.merging.thresholds import find_thresholds
from spunge.weights.checkpoint import Checkpoint
from spunge.weights.task_vector import TaskVector

_DEFAULTS, _CHECKPOINT = Options(), AsCheckpoint()


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
    options: Options = _DEFAULTS,
) -> Merged:
    """Merges task vectors into one that is held in memory.

    Args:
        merger: The method with its settings.
        variants: Name → task vector, or a task vector directory, which is streamed.
        base: The base model's files: needed to trim at the scope of the whole model, and checked against if given.
        options: How to compute it.

    Raises:
        IncompatibleTaskVectors: The variants do not belong together or to the base, or hold NaN or infinity.
        RecipeError: The merger's settings do not fit the variants.
    """
    job = prepare(merger, variants, base, options)
    # Not zeros: the blocks cover every element, so filling the pages first would be work for nothing.
    entries = {name: torch.empty(math.prod(shape)) for name, shape in job.shapes.items()}

    def store(name: str, start: int, values: Tensor) -> None:
        entries[name][start : start + len(values)] = values

    diagnostics = combine(job, store)
    shaped = {name: entries[name].reshape(shape) for name, shape in job.shapes.items()}
    return Merged(TaskVector(shaped, job.scale, provenance(job)), diagnostics)


def write(
    merger: Merger,
    variants: Mapping[str, TaskVector | str | Path],
    out: str | Path,
    *,
    base: Checkpoint,
    form: Form = _CHECKPOINT,
    options: Options = _DEFAULTS,
) -> dict[str, Any]:
    """Merges task vectors straight into a new directory, in memory that does not grow with the model.

    Args:
        merger: The method with its settings.
        variants: Name → task vector, or a task vector directory.
        out: The new directory; it must not exist, and exists afterwards only if all went well.
        base: The base model's files.
        form: `AsCheckpoint()`, `AsTaskVector()` or `AsAdapter()`, with what each can be told.
        options: How to compute it.

    Returns:
        The diagnostics, with what the form has to say.

    Raises:
        IncompatibleTaskVectors: The variants do not belong together or to the base, or hold NaN or infinity; for an
            adapter also if a changed tensor is not the weight of a linear layer.
        RecipeError: The merger's settings do not fit the variants.
        ArtifactError: `out` exists or cannot be written.
    """
    job = prepare(merger, variants, base, options)
    with new_directory(out) as building:
        destination = form.open(job, building)
        diagnostics = combine(job, destination.write)
        # While the directory still has its passing name: a damaged base would be in every weight that was written.
        base.verify()
        return {**diagnostics, **destination.close(diagnostics)}


def combine(job: Job, write: Callable[[str, int, Tensor], None]) -> dict[str, Any]:
    """Combines everything, block by block, and hands it to `write`; returns the diagnostics."""
    # glibc gives freed memory back to the system above a limit, so that every block would fault its pages in again. The
    # limit rises with the largest mapping that was freed, to 32 MiB at most: one that is never touched costs nothing.
    torch.empty((32 << 20) - (1 << 16), dtype=torch.uint8)
    load_loops(len(job.variants) * sum(math.prod(shape) for shape in job.shapes.values()))
    with job.files:
        diagnostics = _combine(job, write)
    for variant in job.variants.values():
        variant.verify()  # nothing that was written is published before
    return diagnostics


def _combine(job: Job, write: Callable[[str, int, Tensor], None]) -> dict[str, Any]:
    everywhere = None
    if job.needs.densities and job.needs.scope != "tensor":
        # Counted over all tensors together, it says nothing of a single one: the second pass counts each by itself.
        everywhere = replace(find_thresholds(job, list(job.shapes), _scope_size(job)), counts=None)
    # All at once: what is small and stays, made between blocks, would split the memory that the next block could reuse.
    tensors = {name: Measures(len(job.variants)) for name in job.shapes}
    for done, (name, shape) in enumerate(job.shapes.items()):
        job.options.progress("merge", done, len(job.shapes))
        thresholds = everywhere
        if job.needs.densities and thresholds is None:
            # Both passes over this tensor come one after the other, so what is small enough is read once for the two.
            job.hold(name)
            thresholds = find_thresholds(job, [name], math.prod(shape))
        measures = tensors[name]
        if thresholds is not None:
            measures.take(thresholds.counts or ())
        merged_as = job.tied.get(name, name)
        grams = _grams_of(job, merged_as) if job.needs.grams else None
        for start, stop in job.pieces(name, job.needs.granularity):
            stacked = job.stacked(name, start, stop)
            deltas = stacked[:-1]
            merged = job.merger.combine(
                Block(
                    deltas=deltas if job.needs.granularity == "element" else deltas.reshape(_blocked(deltas, shape)),
                    weights=job.weights,
                    thresholds=thresholds.cutoffs if thresholds else (),
                    variants=tuple(job.variants),
                    tensor=merged_as,
                    shape=shape,
                    start=start,
                    seed=job.options.seed,
                    grams=grams,
                )
            ).reshape(-1)
            if (factor := job.layer_factor(merged_as)) != 1.0:
                merged = merged * factor
            # Beside the variants, so that one set of inner products gives cosines, norms and coverage alike.
            stacked[-1] = merged
            measures.add(stacked, thresholds)
            # Asked of the sums, which are there anyway: a NaN or an infinity never leaves them.
            if not measures.gram.isfinite().all():
                _refuse_infinite(job, name, stacked)
            write(name, start, merged)
    job.options.progress("merge", len(job.shapes), len(job.shapes))
    return summarise(job, tensors)


def _scope_size(job: Job) -> int:
    if job.needs.scope == "model":
        assert job.base is not None
        # Whole numbers, such as a buffer of positions, are no weights and do not count among them.
        return sum(math.prod(t.shape) for t in job.base.tensors.values() if t.dtype.is_floating_point)
    return sum(math.prod(shape) for name, shape in job.shapes.items() if _differs(job, name))


def _differs(job: Job, name: str) -> bool:
    """Whether any variant changes this tensor: one that stores nothing but zeros does not."""
    # A file may hold a tensor of zeros, which must not count among the entries that density is a share of.
    return any(bool(job.deltas(name, *piece).any()) for piece in job.pieces(name, "element"))


def _blocked(deltas: Tensor, shape: tuple[int, ...]) -> tuple[int, int, int]:
    # A bias or a norm counts as one row.
    columns = shape[-1] if len(shape) > 1 else deltas.shape[1]
    return len(deltas), deltas.shape[1] // columns, columns


def _grams_of(job: Job, name: str) -> tuple[Tensor, ...] | None:
    grams = job.options.grams
    assert grams is not None
    owners = [*job.variants, RETAIN]
    if not all(name in grams[owner] for owner in owners):
        return None
    return tuple(grams[owner][name].to(job.options.device) for owner in owners)


def _refuse_infinite(job: Job, name: str, stacked: Tensor) -> None:
    # The variants first: an infinity of theirs is in the merged delta too, and is not its fault.
    for variant, delta in zip(job.variants, stacked, strict=False):
        if not delta.isfinite().all():
            raise IncompatibleTaskVectors(f"{name}: {variant} holds NaN or infinity; its training diverged?")
    if not stacked[-1].isfinite().all():
        raise IncompatibleTaskVectors(f"{name}: the merged delta is infinite somewhere; lower the weights")

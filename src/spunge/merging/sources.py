"""What can be merged: task vectors, adapters and checkpoints, opened by name and checked to be of one base."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from spunge.errors import ArtifactError, IncompatibleTaskVectors, RecipeError
from spunge.variants import SUBSET
from spunge.weights import adapter
from spunge.weights.checkpoint import INDEX, SINGLE, Checkpoint
from spunge.weights.language_model import LanguageModel
from spunge.weights.task_vector import FILE, Difference, Entry, TaskVector, check_shape

T = TypeVar("T")
_CONSTANT = re.compile(r"(.*\.)?(rotary_emb\.inv_freq|attn\.masked_bias)")
"""What older versions of transformers stored besides the weights, and newer ones compute: may be missing anywhere."""


@dataclass(frozen=True)
class Part:
    """A task vector of a run, as the run used it."""

    word: str
    """What the user wrote: `RUN:VARIANT`."""
    run: Path
    """The run's directory."""
    variant: str
    """The variant's name in the run."""
    path: Path
    """The task vector's directory in the store."""
    scale: float
    """The λ at which the run asked it, its sign apart, which the task vector holds."""
    model: LanguageModel
    """The base model."""

    @property
    def name(self) -> str:
        """Its own among others that are merged: that of its subset, or of the variant."""
        return self.variant.removeprefix(SUBSET)

    def __str__(self) -> str:
        return self.word


def open_variant(path: str | Path | Part, base: Checkpoint) -> TaskVector:
    """Opens a task vector directory, a PEFT adapter or a Hugging Face checkpoint of the same base, to be streamed.

    Raises:
        ArtifactError: It is none of these, or damaged.
        IncompatibleTaskVectors: It does not fit the base model.
    """
    if isinstance(path, Part):
        return open_variant(path.path, base).scaled(path.scale)
    path = Path(path)
    if not path.is_dir():
        raise ArtifactError(
            f"{path}: no such directory; a variant is a task vector, an adapter, a checkpoint, or a part of a run such "
            "as runs/x:joint"
        )
    if (path / FILE).exists():
        task_vector = TaskVector.open(path)
        for name in task_vector:
            base.check(name, task_vector.shape(name), str(path))
        return task_vector
    if adapter.is_adapter(path):
        return adapter.read(path, base)
    if (path / INDEX).exists() or (path / SINGLE).exists():
        return _difference(Checkpoint.open(path), base)
    raise ArtifactError(
        f"{path}: neither a task vector ({FILE}), nor an adapter ({adapter.CONFIG}), nor a checkpoint ({SINGLE})"
    )


def open_variants(
    paths: Sequence[str | Path | Part], base: Checkpoint, *, only: Sequence[str] = (), without: Sequence[str] = ()
) -> dict[str, TaskVector]:
    """Opens variants under the names of their directories, or their own; where two are equal, as they were given.

    Args:
        paths: Their directories, or parts of runs.
        base: The base model's files.
        only: The names of those to open; as for `select`. What is not chosen is not looked at.
        without: The names of those to leave out.

    Raises:
        RecipeError: As by `select`.
        IncompatibleTaskVectors: The same directory is named twice, or one does not fit the base model.
        ArtifactError: One is no variant, or damaged.
    """
    names = [path.name if isinstance(path, Part) else Path(path).resolve().name for path in paths]
    named: dict[str, str | Path | Part] = {}
    for name, path in zip(names, paths, strict=True):
        named[name if names.count(name) == 1 else str(path)] = path
    if len(named) < len(paths):
        raise IncompatibleTaskVectors("the same variant is named twice; name each once")
    refuse_twice(named)
    chosen = select(named, only=only, without=without) if named else named
    return {name: open_variant(path, base) for name, path in chosen.items()}


def select(variants: Mapping[str, T], *, only: Sequence[str] = (), without: Sequence[str] = ()) -> dict[str, T]:
    """Returns some variants by name, in their order: those in `only`, or, if that is empty, all but those in `without`.

    Raises:
        RecipeError: A name is unknown, both lists are given, or nothing is left.
    """
    if only and without:
        raise RecipeError("--only and --except exclude each other: name what to merge, or what not to")
    for name in (*only, *without):
        if name not in variants:
            raise RecipeError(f"no variant is named {name!r}; there are {', '.join(variants)}")
    chosen = {name: variant for name, variant in variants.items() if (name in only if only else name not in without)}
    if not chosen:
        raise RecipeError("--except leaves nothing to merge: name fewer")
    return chosen


def refuse_twice(variants: Mapping[str, TaskVector | str | Path | Part]) -> None:
    """Raises IncompatibleTaskVectors if two names stand for the same variant."""
    seen: dict[Any, str] = {}
    for name, variant in variants.items():
        directory = variant.path if isinstance(variant, Part) else variant
        key = id(directory) if isinstance(directory, TaskVector) else Path(directory).resolve()
        if key in seen:
            raise IncompatibleTaskVectors(f"variants {seen[key]!r} and {name!r} are the same; name each once")
        seen[key] = name


def _difference(variant: Checkpoint, base: Checkpoint) -> TaskVector:
    """A checkpoint minus the base: only what differs, found without reading further than the first difference."""
    missing = [name for name in base.tensors if name not in variant.tensors and not _CONSTANT.fullmatch(name)]
    extra = [name for name in variant.tensors if name not in base.tensors and not _CONSTANT.fullmatch(name)]
    entries: dict[str, Entry] = {}
    for name, stored in sorted(base.tensors.items()):
        other = variant.tensors.get(name)
        if other is None:
            continue
        check_shape(name, stored.shape, other.shape, str(variant.directory))
        if other.equals(stored):
            continue
        if not (stored.dtype.is_floating_point and other.dtype.is_floating_point):
            raise IncompatibleTaskVectors(f"{name}: {variant.directory} differs in a tensor of {stored.dtype}")
        entries[name] = Difference(other, stored)
    # Tied weights may be stored once or twice, so a tensor may be lacking if it is a copy of one that is there; it
    # changes with that one, or the merged checkpoint would hold two different weights for what is tied.
    for name in missing:
        copies = [copy for copy in _copies(name, base) if copy in variant.tensors]
        changed = [copy for copy in copies if copy in entries]
        if not copies or len(changed) not in (0, len(copies)):
            raise IncompatibleTaskVectors(f"{variant.directory}: lacks {name!r}, which {base.directory} has")
        if changed:
            entries[name] = Difference(variant.tensors[changed[0]], base.tensors[name])
    for name in extra:
        if not _copies(name, variant):
            raise IncompatibleTaskVectors(f"{variant.directory}: has {name!r}, which {base.directory} lacks")
    return TaskVector(entries, 1.0, {"settings": {"checkpoint": variant.directory.name}}, variant.checks)


def _copies(name: str, checkpoint: Checkpoint) -> list[str]:
    """Returns the names of the other matrices that hold the same values; vectors of zeros or ones are often equal."""
    stored = checkpoint.tensors[name]
    if len(stored.shape) < 2:
        return []
    return [other for other, tensor in checkpoint.tensors.items() if other != name and tensor.equals(stored)]

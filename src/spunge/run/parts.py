"""A run's parts by name: `RUN:subset:women` wherever a task vector is taken, so that nobody searches the store."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from spunge.errors import ArtifactError, RecipeError
from spunge.merging import Part
from spunge.report import artifacts
from spunge.variants import MERGED
from spunge.weights.language_model import LanguageModel
from spunge.weights.task_vector import FILE

_MERGED = "merged"
"""What the merged model may be called beside its name in a run."""


def find(word: str | Path | Part) -> str | Path | Part:
    """Returns the part of a run that a word names as `RUN:VARIANT` or `RUN:VARIANT@SEED`, or the word where it is none.

    What there is a file of is a path, whatever it is called.

    Raises:
        RecipeError: It is a run, and does not say which part.
        ArtifactError: The run has no such part, or cannot be read.
    """
    if isinstance(word, Part):
        return word
    text = str(word)
    if Path(text).exists():
        a_run = all((Path(text) / file).is_file() for file in ("recipe.yaml", "manifest.json"))
        if a_run and not (Path(text) / FILE).exists():
            names = ", ".join(f"{text}:{name}" for name in _by_name(Path(text)))
            raise RecipeError(f"{text}: a run: name a part of it ({names or 'it has none yet'})")
        return word
    pieces = text.split(":")
    for count in range(1, len(pieces)):
        run = ":".join(pieces[:count])
        if run and Path(run).is_dir():
            return part(run, ":".join(pieces[count:]))
    return word


def part(run: str | Path, variant: str, seed: int | None = None) -> Part:
    """Returns a variant's task vector of a run.

    Args:
        run: The run's directory.
        variant: As the run calls it (`joint`, `subset:women`), `merged`, or one of them with its seed (`joint@1`).
        seed: Which of the run's seeds, where the name does not say it; None is the first.

    Raises:
        ArtifactError: The run has no such part, or cannot be read.
    """
    named = _by_name(Path(run))
    name, at, written = variant.rpartition("@")
    if variant not in named and variant != _MERGED and at and written.isdecimal():
        variant, seed = name, int(written)
    variant = MERGED.name if variant == _MERGED else variant
    if variant not in named:
        status = artifacts.read(Path(run)).manifest.status
        there = f"there are {', '.join(named)}" if named else f"it has none yet (its status is {status!r})"
        if variant == "base":
            there = f"the base model is what task vectors are added to; {there}"
        raise ArtifactError(f"{run}: no part is named {variant!r}; {there}")
    seeds = named[variant]
    chosen = next(iter(seeds)) if seed is None else seed
    if chosen not in seeds:
        raise ArtifactError(f"{run}: no {variant} of seed {seed}; there are {', '.join(map(str, seeds))}")
    return seeds[chosen]


def _by_name(run: Path) -> Mapping[str, Mapping[int, Part]]:
    """Every variant that has a task vector, by name and seed."""
    manifest = artifacts.read(run).manifest
    model = LanguageModel(id=manifest.model.id, revision=manifest.model.revision)
    named: dict[str, dict[int, Part]] = {}
    for one in manifest.variants:
        if one.task_vector is not None:
            made = Part(f"{run}:{one.name}", run, one.name, run / one.task_vector, one.scale, model)
            named.setdefault(one.name, {})[one.seed or 0] = made
    return named

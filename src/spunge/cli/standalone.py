"""Single steps without a recipe: unlearn, merge, export and evaluate on plain directories and files."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from spunge import merging, report
from spunge.errors import ArtifactError, RecipeError, SpungeError, TrainingDiverged
from spunge.files import new_directory, refuse_existing
from spunge.interfaces import Evaluator, Merger, Progress, Unlearner, Work, silent, strength_of
from spunge.report import artifacts
from spunge.rows.items import RUN_FORMAT
from spunge.rows.sources import Corpus, Source, concatenate, load_corpus
from spunge.run.journal import environment
from spunge.run.pipeline import choose_device
from spunge.run.stages import Base, Evaluate, Unlearn, Variant
from spunge.run.store import Artifact, key
from spunge.settings import Settings
from spunge.steering.settings import SteeredUnlearner
from spunge.training.settings import Tuning
from spunge.variants import MERGED
from spunge.weights.checkpoint import export as write_checkpoint
from spunge.weights.language_model import LanguageModel, Resident, linear_names
from spunge.weights.task_vector import TaskVector

if TYPE_CHECKING:
    from spunge.steering.search import Trial

FORMS = ("checkpoint", "task-vector", "adapter")


def unlearn(
    *,
    model: str,
    forget: Mapping[str, Sequence[Source]],
    retain: Sequence[Source],
    unlearner: Unlearner,
    out: Path,
    seed: int,
    device: str,
    dtype: str | None,
    progress: Progress,
) -> TaskVector:
    """Unlearns a forget set and writes the task vector; several named sources are topics.

    Started by torchrun, all processes do it together, and the first writes.

    Raises:
        SpungeError: Something is missing or wrong; `out` does not exist afterwards.
    """
    base = Base(handle(model, dtype))
    base.model.directory(weights=False)
    rows = _topics(forget)
    name = f"subset:{next(iter(forget))}" if len(forget) == 1 and "" not in forget else "forget"
    task = Unlearn("subset", name, base, unlearner, rows, load_corpus(retain) if retain else None, seed)
    asked = key(task.stage, task.inputs)
    with _together(unlearner, device) as (device, first), ExitStack() as stack:
        if not first:
            elsewhere = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            task.make(Work(Resident(device), elsewhere, _scratch_of(out, asked), seed))
            return TaskVector({})
        directory, scratch = stack.enter_context(new_directory(out)), stack.enter_context(_scratch(out, asked))
        noted = task.make(Work(Resident(device, shared=False), directory, scratch, seed, progress))
        trained = TaskVector.load(directory)
        scaled = replace(trained.scaled(strength_of(unlearner)), provenance={**trained.provenance, **noted})
        scaled.save(directory)
    return TaskVector.open(out)


def merge(
    *,
    base: str,
    variants: Sequence[str],
    merger: Merger,
    out: Path,
    form: str,
    seed: int,
    device: str,
    progress: Progress,
    only: Sequence[str] = (),
    without: Sequence[str] = (),
    rank: int = 64,
) -> dict[str, Any]:
    """Merges variants on disk into a checkpoint, a task vector or an adapter; returns the diagnostics.

    A variant's name, for `only`, `without` and weights, is that of its directory; `rank` is that of an adapter by SVD.

    Raises:
        SpungeError: Something is missing or wrong; `out` does not exist afterwards.
    """
    if form not in FORMS:
        raise RecipeError(f"--as {form}: use one of {', '.join(FORMS)}")
    refuse_existing(out)
    given = LanguageModel(id=base)
    checkpoint = given.checkpoint()
    opened = merging.open_variants(variants, checkpoint, only=only, without=without)
    options = {"seed": seed, "device": choose_device(device), "progress": progress}
    if form == "adapter":
        options["names"] = linear_names(given.outline(), checkpoint.tensors)
        return merging.write_adapter(merger, opened, out, base=checkpoint, rank=rank, model=base, **options)
    if form == "checkpoint":
        method = getattr(merger, "method", type(merger).__name__)
        what = f"the {method} merge of {len(opened)} task vectors: {', '.join(opened)}"
        options["card"] = card(base, what, {"merge": merger.dump(), "seed": seed})
    return merging.write(merger, opened, out, base=checkpoint, form=form, **options)


def export_run(*, run: Path, out: Path, seed: int | None) -> Path:
    """Writes a run's merged model as a checkpoint; its card has the verdict, the tables, the recipe and the limits.

    Args:
        run: The run's directory.
        out: The new directory.
        seed: Which of the run's seeds; None is the first.

    Raises:
        SpungeError: Something is missing or wrong; `out` does not exist afterwards.
    """
    manifest = artifacts.read(run).manifest
    merged = {
        variant.seed: variant for variant in manifest.variants if variant.name == MERGED.name and variant.task_vector
    }
    if not merged:
        raise ArtifactError(f"{run}: the run has no merged model yet (its status is {manifest.status!r})")
    chosen = next(iter(merged)) if seed is None else seed
    if chosen not in merged:
        raise ArtifactError(f"{run}: no merged model of seed {seed}; there are {', '.join(map(str, merged))}")
    base = manifest.model
    return export(
        model=base.id,
        revision=base.revision,
        task_vector=run / str(merged[chosen].task_vector),
        out=out,
        about=report.card(run),
        scale=merged[chosen].scale,
    )


def export(
    *,
    model: str,
    task_vector: Path,
    out: Path,
    revision: str | None = None,
    about: str | None = None,
    scale: float = 1.0,
) -> Path:
    """Writes model + scale × task vector as a checkpoint with a model card: `about`, or a plain one.

    Raises:
        SpungeError: Something is missing or wrong; `out` does not exist afterwards.
    """
    checkpoint = LanguageModel(id=model, revision=revision).checkpoint()
    vector = merging.open_variant(task_vector, checkpoint).scaled(scale)
    merging.check_base({str(task_vector): vector}, checkpoint)
    if about is None:
        made = {name: vector.provenance.get(name) for name in ("method", "settings", "data", "seed")}
        what = f"a task vector that changes {len(vector)} parameters (norm {vector.norm:.4g})"
        about = card(model, what, {**made, "scale": vector.scale})
    return write_checkpoint(checkpoint.directory, vector, out, card=about)


def evaluate(
    *,
    model: str,
    task_vector: Path | None,
    evaluators: Sequence[Evaluator],
    out: Path,
    device: str,
    dtype: str | None,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Asks a model, or model + task vector, every question of some suites; returns the overall scores.

    Raises:
        SpungeError: Something is missing or wrong; `out` does not exist afterwards.
    """
    base = Base(handle(model, dtype))
    name, artifact = "base", None
    if task_vector is not None:
        checkpoint = base.model.checkpoint()
        merging.check_base({str(task_vector): merging.open_variant(task_vector, checkpoint)}, checkpoint)
        content = LanguageModel(id=str(task_vector)).digest(weights=False)
        name, artifact = "unlearned", Artifact(task_vector, {"key": content})
    variant = Variant(name, "base" if artifact is None else "subset", 0, artifact)
    resident = Resident(choose_device(device))
    tasks = [Evaluate(variant, evaluator, base) for evaluator in evaluators]
    asked = key("evaluate", {"tasks": [task.inputs for task in tasks]})
    with new_directory(out) as directory, _scratch(out, asked) as scratch:
        tables = []
        for task in tasks:
            answers = scratch / key(task.stage, task.inputs)
            answers.mkdir(exist_ok=True)
            task.make(Work(resident, directory, answers, 0, progress))
            tables.append(pl.read_parquet(directory / "items.parquet"))
        items = pl.concat(tables).select(pl.lit(name).alias("variant"), pl.lit(0).alias("seed"), pl.all())
        items.write_parquet(directory / "items.parquet")
        manifest = {
            "format": RUN_FORMAT, "experiment": out.name, "status": "done",
            "model": {"id": model, "revision": None, "digest": base.digest}, "seeds": [0],
            "suites": [evaluator.described for evaluator in evaluators],
            "variants": [{"name": name, "kind": variant.kind, "subset": None, "seed": 0}],
            "environment": environment(resident.device),
        }  # fmt: skip
        (directory / "manifest.json").write_text(json.dumps(manifest, indent=1, ensure_ascii=False))
        results = report.build(directory)
        (directory / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False))
    return [score for score in results["scores"] if score["attribute"] is None and score["seed"] == 0]


def finetune(
    *,
    model: str,
    sources: Sequence[Source],
    settings: Tuning,
    out: Path,
    seed: int,
    device: str,
    dtype: str | None,
    progress: Progress,
) -> Path:
    """Trains a model to say some rows, and writes it as a checkpoint: the base of an unlearning experiment.

    Raises:
        SpungeError: Something is missing or wrong; `out` does not exist afterwards.
    """
    from spunge.training.goals import finetune

    rows, base = load_corpus(sources), handle(model, dtype)
    with _together(settings, device) as (device, first), tempfile.TemporaryDirectory() as scratch:
        work = Work(Resident(device), Path(scratch), Path(scratch), seed, progress if first else silent)
        return finetune(settings, base, rows, out, work)


def search(
    *,
    model: str,
    forget: Mapping[str, Sequence[Source]],
    retain: Sequence[Source],
    settings: SteeredUnlearner,
    layers: Sequence[int],
    out: Path,
    seed: int,
    device: str,
    dtype: str | None,
    progress: Progress,
) -> list[Trial]:
    """Finds RMU's layer, steering coefficient and α for a model that nobody has tuned; returns the best trial first.

    Raises:
        SpungeError: Something is missing or wrong; `out` does not exist afterwards.
    """
    from spunge.steering.search import search as find

    base, rows, kept = handle(model, dtype), _topics(forget), load_corpus(retain)
    resident = Resident(choose_device(device))
    with new_directory(out) as directory, tempfile.TemporaryDirectory() as scratch:
        work = Work(resident, directory, Path(scratch), seed, progress)
        return find(settings, base, rows, kept, work, layers=layers)


def _topics(forget: Mapping[str, Sequence[Source]]) -> Corpus:
    """Loads a forget set of named topics, or of a single one without a name."""
    loaded = {name: load_corpus(sources) for name, sources in forget.items()}
    return concatenate(rows.with_subset(name) if name else rows for name, rows in loaded.items())


def handle(model: str, dtype: str | None) -> LanguageModel:
    """Returns the handle of a model named on the command line."""
    return LanguageModel.model_validate({"id": model, "dtype": dtype or "auto"})


def card(model: str, what: str, made: Mapping[str, Any]) -> str:
    """Returns the model card of a checkpoint that no run stands behind: what it is, from what, and how it was made."""
    known = {name: value for name, value in made.items() if value is not None}
    return (
        f"---\nbase_model: {json.dumps(model)}\nlibrary_name: transformers\ntags: [unlearning, spunge]\n---\n\n"
        f"# {Path(model).name}, unlearned\n\n"
        f"`{model}` plus {what}.\n\n"
        f"```json\n{json.dumps(known, indent=1, sort_keys=True, default=str)}\n```\n\n"
        "## Limits\n\n"
        "- Nothing was measured on this checkpoint when it was written: what it forgot, and what else it lost, is not "
        "known here.\n"
        "- Unlearning hides more than it erases: fine-tuning, quantisation or other prompts may bring part of it "
        "back.\n"
    )


@contextmanager
def _together(settings: Settings, device: str) -> Iterator[tuple[str, bool]]:
    """Joins the processes that torchrun started, if it did; yields the device, and whether this is the first."""
    from spunge.training import sharding

    with sharding.launched(choose_device(device)) as device:
        if sharding.size() > 1 and not isinstance(settings, Tuning):
            method = getattr(settings, "method", type(settings).__name__)
            raise RecipeError(f"{method} runs in one process: start it without torchrun")
        yield device, sharding.rank() == 0


@contextmanager
def _scratch(out: Path, name: str) -> Iterator[Path]:
    """Where a killed attempt leaves its checkpoints; gone after success, and after a mistake."""
    scratch = _scratch_of(out, name)
    scratch.mkdir(parents=True, exist_ok=True)
    try:
        yield scratch
    except BaseException as error:
        if isinstance(error, (SpungeError, OSError)) and not isinstance(error, TrainingDiverged):
            shutil.rmtree(scratch, ignore_errors=True)
        with suppress(OSError):  # not empty: there is something to continue from, or the last good weights
            scratch.rmdir()
        raise
    shutil.rmtree(scratch, ignore_errors=True)


def _scratch_of(out: Path, name: str) -> Path:
    return out.parent / f".{out.name}.{name}"

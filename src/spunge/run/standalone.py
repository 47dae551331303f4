"""What single steps without a recipe do: unlearn, merge, export and evaluate plain directories and files."""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from spunge import merging, report
from spunge.errors import RecipeError, SpungeError, TrainingDiverged
from spunge.files import locate, new_directory, refuse_existing
from spunge.interfaces import Evaluator, Merger, Progress, Unlearner, Work, silent, strength_of
from spunge.mergers import TaskArithmetic
from spunge.merging import AsAdapter, AsCheckpoint, AsTaskVector, Form, Part
from spunge.report.markdown import front_matter
from spunge.rows.items import RUN_FORMAT
from spunge.rows.sources import Corpus, Source, concatenate, load_corpus
from spunge.run.cautions import cautions_of_sets
from spunge.run.compute import choose_device
from spunge.run.environment import environment
from spunge.run.evaluate import Evaluate
from spunge.run.keys import key
from spunge.run.parts import find
from spunge.run.store import Artifact
from spunge.run.unlearn import Unlearn
from spunge.run.variant import Base, Variant
from spunge.settings import Settings
from spunge.steering.settings import Steering
from spunge.training.settings import Tuning
from spunge.weights.checkpoint import export as write_checkpoint
from spunge.weights.language_model import LanguageModel, Resident, linear_names
from spunge.weights.shape import check_tokens
from spunge.weights.task_vector import TaskVector

if TYPE_CHECKING:
    from spunge.steering.search import Trial


_FORMS: dict[str, type[Form]] = {"checkpoint": AsCheckpoint, "task-vector": AsTaskVector, "adapter": AsAdapter}


@dataclass(frozen=True)
class Step:
    """What every step is told beside its own task: from which model, to where, and how to compute it."""

    model: str | LanguageModel
    """The model's directory or hub id, or its handle."""
    out: Path
    """The new directory; after an error it is not there."""
    seed: int = 0
    device: str = "auto"
    dtype: str | None = None
    """What to compute in; None: what the checkpoint is stored in."""
    progress: Progress = silent

    @property
    def base(self) -> LanguageModel:
        """The handle of the model."""
        if isinstance(self.model, LanguageModel):
            return self.model if self.dtype is None else self.model.model_copy(update={"dtype": self.dtype})
        return LanguageModel.model_validate({"id": self.model, "dtype": self.dtype or "auto"})


def unlearn(
    step: Step, unlearner: Unlearner, forget: Mapping[str, Sequence[Source]], retain: Sequence[Source]
) -> TaskVector:
    """Unlearns a forget set and writes the task vector; several named sources are topics.

    Started by torchrun, all processes do it together, and the first writes.

    Raises:
        SpungeError: Something is missing or wrong; `step.out` does not exist afterwards.
    """
    step.base.directory(weights=False)  # before the rows, which may take long to read
    loaded = {name: load_corpus(sources) for name, sources in forget.items()}
    retained = load_corpus(retain) if retain else None
    return unlearn_rows(step, unlearner, loaded, retained, [*chain.from_iterable(forget.values()), *retain])


def unlearn_rows(
    step: Step,
    unlearner: Unlearner,
    forget: Mapping[str, Corpus],
    retained: Corpus | None,
    sources: Sequence[Source] = (),
) -> TaskVector:
    """Unlearns rows that are loaded already; see `unlearn`.

    Args:
        step: From which model, to where, and how.
        unlearner: The method.
        forget: The rows to forget by topic; "" where there is one without a name.
        retained: The rows to keep.
        sources: Where the rows come from, for what is odd in the files.
    """
    base, rows = Base(step.base), _topics(forget)
    _check_sets(step, sources, rows, retained)
    name = f"subset:{next(iter(forget))}" if len(forget) == 1 and "" not in forget else "forget"
    task = Unlearn("subset", name, base, unlearner, rows, retained, step.seed)
    task_key = key(task.stage, task.inputs)
    with _together(unlearner, step.device) as (device, first), ExitStack() as stack:
        if not first:
            elsewhere = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            task.take_part(Work(Resident(device), elsewhere, _scratch_of(step.out, task_key), step.seed))
            return TaskVector({})
        directory, scratch = (
            stack.enter_context(new_directory(step.out)),
            stack.enter_context(_scratch(step.out, task_key)),
        )
        figures = task.make(Work(Resident(device, shared=False), directory, scratch, step.seed, step.progress))
        trained = TaskVector.load(directory)
        scaled = replace(trained.scaled(strength_of(unlearner)), provenance={**trained.provenance, **figures})
        scaled.save(directory)
    return TaskVector.open(step.out)


def parse_form(name: str, rank: int) -> Form:
    """Returns the form of a merge that `--as` names; `rank` is that of an adapter by SVD.

    Raises:
        RecipeError: There is no such form.
    """
    if name not in _FORMS:
        raise RecipeError(f"--as {name}: use one of {', '.join(_FORMS)}")
    return AsAdapter(rank) if name == "adapter" else _FORMS[name]()


def _name_of(form: Form | None) -> str:
    return next((name for name, kind in _FORMS.items() if isinstance(form, kind)), "checkpoint")


def merge(
    step: Step,
    merger: Merger,
    variants: Sequence[str | Path | Part],
    form: Form,
    *,
    only: Sequence[str] = (),
    without: Sequence[str] = (),
) -> dict[str, Any]:
    """Merges variants on disk into a new directory; returns the diagnostics.

    A variant's name, for `only`, `without` and weights, is that of its directory, or of a run's part.

    Raises:
        SpungeError: Something is missing or wrong; `step.out` does not exist afterwards.
    """
    refuse_existing(step.out)
    base = step.base
    checkpoint = base.checkpoint()
    opened = merging.open_variants([find(each) for each in variants], checkpoint, only=only, without=without)
    if isinstance(form, AsAdapter):
        form = _adapter_of(base, form)
    if isinstance(form, AsCheckpoint | AsAdapter):
        method = getattr(merger, "method", type(merger).__name__)
        what = f"the {method} merge of {len(opened)} task vectors: {', '.join(opened)}"
        form = replace(form, card=card(base.id, what, {"merge": merger.dump(), "seed": step.seed}, form))
    options = merging.Options(choose_device(step.device), step.seed, progress=step.progress)
    diagnostics = merging.write(merger, opened, step.out, base=checkpoint, form=form, options=options)
    if (caution := merging.caution_of_rounding(diagnostics.get("rounding"))) is not None:
        diagnostics["warnings"].append(caution)
    return diagnostics


def export_part(part: Part, out: Path, *, form: Form | None = None) -> dict[str, Any]:
    """Writes a run's model of one variant; its card has the verdict, the tables, the recipe and the limits.

    Args:
        part: Which of the run's models, as `parts.part` finds it.
        out: The new directory.
        form: As what; None is a checkpoint.

    Returns:
        What the form has to say, such as an adapter's `energy`.

    Raises:
        SpungeError: Something is missing or wrong; `out` does not exist afterwards.
    """
    return export(part.model, part, out, form=form, about=report.card(part.run, part.variant, _name_of(form)))


def export(
    model: LanguageModel,
    task_vector: str | Path | Part,
    out: Path,
    *,
    form: Form | None = None,
    about: str | None = None,
) -> dict[str, Any]:
    """Writes model + task vector as a checkpoint or an adapter, or the task vector alone, with a model card.

    Args:
        model: The base model.
        task_vector: What to add: a task vector, an adapter or a checkpoint of that model, or a part of a run.
        out: The new directory.
        form: As what; None is a checkpoint.
        about: The card; None: a plain one.

    Returns:
        What the form has to say, such as an adapter's `energy`.

    Raises:
        SpungeError: Something is missing or wrong; `out` does not exist afterwards.
    """
    checkpoint = model.checkpoint()
    vector = merging.open_variant(find(task_vector), checkpoint)
    merging.check_base({str(task_vector): vector}, checkpoint)
    if about is None:
        made = {name: vector.provenance.get(name) for name in ("method", "settings", "data", "seed")}
        what = f"a task vector that changes {len(vector)} parameters (norm {vector.norm:.4g})"
        about = card(model.id, what, {**made, "scale": vector.scale}, form)
    if isinstance(form, AsAdapter):
        # The sum of one: exact of factors, and else what of it an adapter of this rank can hold.
        adapter = replace(_adapter_of(model, form), card=about)
        return merging.write(TaskArithmetic(), {"exported": vector}, out, base=checkpoint, form=adapter)
    if isinstance(form, AsTaskVector):
        with new_directory(out) as building:
            vector.save(building)
            vector.verify()
            (building / "README.md").write_text(about, encoding="utf-8")
        return {}
    write_checkpoint(checkpoint.directory, vector, out, card=about)
    return {}


def _adapter_of(model: LanguageModel, form: AsAdapter) -> AsAdapter:
    # PEFT knows directories and the hub alone, so an embedded model is named by where it lies.
    named = str(locate(model.id)) if model.id.startswith("lab:") else model.id
    return replace(form, model=named, names=linear_names(model.outline(), model.checkpoint().tensors))


def evaluate(
    step: Step, evaluators: Sequence[Evaluator], task_vector: str | Path | Part | None = None
) -> list[dict[str, Any]]:
    """Asks a model, or model + task vector, every question of some suites; returns the overall scores.

    The task vector is a directory, or a part of a run.

    Raises:
        SpungeError: Something is missing or wrong; `step.out` does not exist afterwards.
    """
    base = Base(step.base)
    for evaluator in evaluators:
        evaluator.forecast(base.model)  # refuses what a plan would, such as a token without a row
    name, artifact, scale = "base", None, 1.0
    if task_vector is not None:
        checkpoint, found = base.model.checkpoint(), find(task_vector)
        merging.check_base({str(task_vector): merging.open_variant(found, checkpoint)}, checkpoint)
        directory, scale = (found.path, found.scale) if isinstance(found, Part) else (Path(found), 1.0)
        content = LanguageModel(id=str(directory)).digest(weights=False)
        name, artifact = "unlearned", Artifact(directory, {"key": content})
    variant = Variant(name, "base" if artifact is None else "subset", 0, artifact, scale)
    resident = Resident(choose_device(step.device))
    tasks = [Evaluate(variant, evaluator, base) for evaluator in evaluators]
    suites_key = key("evaluate", {"tasks": [task.inputs for task in tasks]})
    with new_directory(step.out) as directory, _scratch(step.out, suites_key) as scratch:
        tables = []
        for task in tasks:
            answers = scratch / key(task.stage, task.inputs)
            answers.mkdir(exist_ok=True)
            task.make(Work(resident, directory, answers, 0, step.progress))
            tables.append(pl.read_parquet(directory / "items.parquet"))
        items = pl.concat(tables).select(pl.lit(name).alias("variant"), pl.lit(0).alias("seed"), pl.all())
        items.write_parquet(directory / "items.parquet")
        manifest = {
            "format": RUN_FORMAT, "experiment": step.out.name, "status": "done",
            "model": {"id": base.model.id, "revision": base.model.revision, "digest": base.digest}, "seeds": [0],
            "suites": [evaluator.described for evaluator in evaluators],
            "variants": [{"name": name, "kind": variant.kind, "subset": None, "seed": 0}],
            "environment": environment(resident.device),
        }  # fmt: skip
        (directory / "manifest.json").write_text(json.dumps(manifest, indent=1, ensure_ascii=False))
        results = report.build(directory)
        (directory / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False))
    return [score for score in results["scores"] if score["attribute"] is None and score["seed"] == 0]


def finetune(step: Step, settings: Tuning, sources: Sequence[Source]) -> Path:
    """Trains a model to say some rows, and writes it as a checkpoint: the base of an unlearning experiment.

    Raises:
        SpungeError: Something is missing or wrong; `step.out` does not exist afterwards.
    """
    from spunge.training.finetuning import finetune

    rows = load_corpus(sources)
    check_tokens(step.base, rows.texts)
    with _together(settings, step.device) as (device, first), tempfile.TemporaryDirectory() as scratch:
        progress = step.progress if first else silent
        return finetune(
            settings,
            step.base,
            rows,
            step.out,
            Work(Resident(device), Path(scratch), Path(scratch), step.seed, progress),
        )


def search(
    step: Step,
    settings: Steering,
    layers: Sequence[int],
    forget: Mapping[str, Sequence[Source]],
    retain: Sequence[Source],
) -> list[Trial]:
    """Finds RMU's layer, steering coefficient and α for a model that nobody has tuned; returns the best trial first.

    Raises:
        SpungeError: Something is missing or wrong; `step.out` does not exist afterwards.
    """
    from spunge.steering.search import Grid
    from spunge.steering.search import search as find

    forget_rows, retain_rows = _load(step, forget, retain)
    resident = Resident(choose_device(step.device))
    with new_directory(step.out) as directory, tempfile.TemporaryDirectory() as scratch:
        work = Work(resident, directory, Path(scratch), step.seed, step.progress)
        return find(settings, step.base, forget_rows, retain_rows, work, Grid(layers))


def _load(step: Step, forget: Mapping[str, Sequence[Source]], retain: Sequence[Source]) -> tuple[Corpus, Corpus]:
    rows = _topics({name: load_corpus(sources) for name, sources in forget.items()})
    retained = load_corpus(retain)
    _check_sets(step, [*chain.from_iterable(forget.values()), *retain], rows, retained)
    return rows, retained


def _check_sets(step: Step, sources: Sequence[Source], rows: Corpus, retained: Corpus | None) -> None:
    """Warns of what is odd in both sets, and refuses what the model cannot read: a recipe's plan does so."""
    for caution in cautions_of_sets(sources, rows, retained):
        warnings.warn(caution, stacklevel=2)
    for corpus in (rows, retained):
        check_tokens(step.base, corpus.texts if corpus is not None else ())


def _topics(forget: Mapping[str, Corpus]) -> Corpus:
    """Stacks a forget set of named topics, or of a single one without a name."""
    return concatenate(rows.with_subset(name) if name else rows for name, rows in forget.items())


def card(model: str, what: str, made: Mapping[str, Any], form: Form | None = None) -> str:
    """Returns the model card of an export that no run stands behind: what it is, from what, and how it was made."""
    stated = {name: value for name, value in made.items() if value is not None}
    return (
        f"{front_matter(model, _name_of(form))}\n\n"
        f"# {Path(model).name}, unlearned\n\n"
        f"`{model}` plus {what}.\n\n"
        f"```json\n{json.dumps(stated, indent=1, sort_keys=True, default=str)}\n```\n\n"
        "## Limits\n\n"
        "- Nothing was measured on it when it was written: what it forgot, and what else it lost, is not "
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

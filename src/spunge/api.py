"""The Python API, each step by itself: thin fronts of what the single steps of the command line do.

Importing this imports no torch; each function fetches what it needs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from spunge.errors import RecipeError
from spunge.interfaces import Progress, silent

if TYPE_CHECKING:
    from spunge.interfaces import Evaluator, Merger, Splitter, Unlearner
    from spunge.recipe.schema import Experiment
    from spunge.report.opened import OpenedRun
    from spunge.rows.sources import Corpus
    from spunge.weights.language_model import LanguageModel
    from spunge.weights.task_vector import TaskVector

    Suite: TypeAlias = str | Path | Mapping[str, Any] | Evaluator

__all__ = [
    "evaluate",
    "export",
    "load",
    "load_vector",
    "merge",
    "open",
    "push_to_hub",
    "rows",
    "run",
    "split",
    "unlearn",
]


def run(
    recipe: str | Path | Experiment,
    *settings: str,
    out: str | Path = "runs",
    allow_code: bool = False,
    progress: Progress | None = None,
    **compute: Any,
) -> Path:
    """Runs an experiment and writes its report.

    Args:
        recipe: An `Experiment`, a YAML file, or the name of a recipe that ships with Spunge.
        *settings: Overrides such as `"merge.density=0.5"`, of an `Experiment` as of a file.
        out: The runs root.
        allow_code: Whether code that a recipe's text or a setting names may run; an `Experiment` is code already.
        progress: Told of every step.
        **compute: On what, and in how many processes: device, dtype, jobs (see `run.compute.Compute`).

    Returns:
        The run's directory, which `open` reads; `report/results.json` in it holds every figure.

    Raises:
        SpungeError: Something is missing or wrong; the message says what.
    """
    from spunge.recipe import reading
    from spunge.recipe.schema import Experiment
    from spunge.run import pipeline
    from spunge.run.compute import Compute

    if isinstance(recipe, Experiment):
        experiment = reading.override(recipe, settings, allow_code=allow_code)
    else:
        experiment = reading.read(recipe, settings, allow_code=allow_code)
    return pipeline.run(experiment, out=out, compute=Compute(**compute), progress=progress or silent)


def open(run: str | Path) -> OpenedRun:
    """Reads a run: its scores, comparisons and items as polars frames, and its verdict.

    Args:
        run: The directory that `run` returned, or one that `spunge run` or `spunge evaluate` wrote.

    Raises:
        ArtifactError: There is no run here, another version of Spunge wrote it, or its files are damaged.
    """
    from spunge.report.opened import OpenedRun

    return OpenedRun.read(Path(run))


def load(model: str | Path, *, revision: str | None = None, dtype: str = "auto") -> LanguageModel:
    """Opens a base model; its weights are read when they are needed, `model.load()` gives transformers' own.

    Args:
        model: A Hugging Face model directory, a hub id, or `lab:model`, the embedded one.
        revision: The hub's, best a commit.
        dtype: What to compute in: auto (the checkpoint's own), float32, bfloat16 or float16.

    Raises:
        ModelError: There is no such model, or it is none that transformers can read.
        RecipeError: There is no such dtype.
    """
    from spunge.recipe import reading
    from spunge.weights.language_model import LanguageModel

    settings = {"id": str(model), "revision": revision, "dtype": dtype}
    handle: LanguageModel = reading.validate(LanguageModel, settings, "model")
    handle.config()
    return handle


def rows(data: Any, **settings: Any) -> Corpus:
    """Reads a forget or a retain set.

    Args:
        data: A file, a directory, a hub id or `lab:…` (`str` or `Path`); a list of texts, or of rows as mappings; or a
            frame of polars, of pandas, or a `datasets.Dataset`.
        **settings: Those of a source in a recipe, such as `columns={"text": "body"}`, `where="level >= 3"`,
            `lines=True` (see `rows.sources.Source`).

    Raises:
        DataError: It is missing, unreadable or empty, or has no `text` and no `prompt` with `response`.
        RecipeError: A setting is unknown or wrong.
    """
    from spunge.recipe import reading
    from spunge.rows import sources

    path = str(data) if isinstance(data, str | Path) else "rows"
    source: sources.Source = reading.validate(sources.Source, {"path": path, **settings}, "rows")
    return sources.load_corpus([source]) if isinstance(data, str | Path) else sources.corpus_of(source, data)


def split(
    rows: Corpus | Any,
    by: str | Splitter = "column",
    *,
    model: str | Path | LanguageModel | None = None,
    seed: int = 0,
    device: str = "auto",
    **settings: Any,
) -> dict[str, Corpus]:
    """Splits a forget set by an attribute, as `split:` in a recipe does.

    Args:
        rows: The forget set, or whatever the function `rows` reads.
        by: `column` (with `column="domain"`), `expression`, `classifier`, `cluster`, `at_random`, or a splitter.
        model: The base model, for a splitter that asks it.
        seed: What a random split draws from.
        device: Where a classifier or a base model is asked.
        **settings: The splitter's own.

    Returns:
        Subset name → its rows, in order of first appearance; a row may be in several.

    Raises:
        RecipeError: A setting is unknown or wrong, or the splitter asks a model and none is given.
        DataError: The rows have not what the splitter reads.
    """
    from spunge.interfaces import Work
    from spunge.recipe.schema import AnySplit
    from spunge.run.compute import choose_device
    from spunge.run.split import Split
    from spunge.run.variant import Base
    from spunge.weights.language_model import LanguageModel, Resident

    splitter: Splitter = _chosen(AnySplit, "split", "by", by, settings)
    rows = _corpus(rows)
    if splitter.asks_base and model is None:
        raise RecipeError("split: this splitter asks the base model: give one as model=…")
    # No splitter that does not ask the base model looks at this handle.
    base = Base(_handle(model) if model is not None else LanguageModel(id="lab:model"))
    with tempfile.TemporaryDirectory() as scratch:
        work = Work(Resident(choose_device(device)), Path(scratch), Path(scratch), seed)
        names = Split(splitter, rows, base, seed).names(work)
    return {name: rows.select(indices) for name, indices in names.items()}


def unlearn(
    model: str | Path | LanguageModel,
    forget: Corpus | Mapping[str, Corpus] | Any,
    retain: Corpus | Any | None = None,
    method: str | Unlearner = "rmu",
    *,
    out: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: Progress = silent,
    **settings: Any,
) -> TaskVector:
    """Unlearns a forget set from a model, as `spunge unlearn` does; the model's files stay as they are.

    Args:
        model: The base model.
        forget: The rows to forget, or whatever `rows` reads; several by name are topics of one unlearning. For SPUNGE
            unlearn each subset by itself and merge what comes of it.
        retain: The rows to keep, which most methods need.
        method: A method (`spunge methods` lists them), or an unlearner.
        out: A new directory for the task vector; None keeps it in memory alone.
        seed: Of everything drawn.
        device: Where to compute; auto is an accelerator if there is one.
        progress: Told of every step.
        **settings: The method's own, such as `layer=7`.

    Raises:
        SpungeError: Something is missing or wrong; `out` does not exist afterwards.
    """
    from spunge.recipe.schema import AnyUnlearn
    from spunge.run import standalone
    from spunge.weights.task_vector import TaskVector

    unlearner = _chosen(AnyUnlearn, "unlearn", "method", method, settings)
    with _new_or_temporary(out) as directory:
        step = standalone.Step(_handle(model), directory, seed, device, progress=progress)
        topics = forget if isinstance(forget, Mapping) else {"": forget}
        topics = {name: _corpus(each) for name, each in topics.items()}
        written = standalone.unlearn_rows(step, unlearner, topics, None if retain is None else _corpus(retain))
        return TaskVector.load(directory) if out is None else written


def merge(
    task_vectors: Sequence[TaskVector | str | Path] | Mapping[str, TaskVector | str | Path],
    method: str | Merger = "ties",
    **settings: Any,
) -> TaskVector:
    """Merges task vectors of one base model into one.

    Args:
        task_vectors: Task vectors, their directories, or parts of runs (`"runs/x:subset:women"`); by name where
            settings speak of single ones (`weights`).
        method: A merge method (`spunge methods` lists them), or a merger.
        **settings: The method's own.

    Raises:
        RecipeError: A setting is unknown or wrong.
        IncompatibleTaskVectors: They do not belong to one base model.
    """
    from spunge.merging import merge as merge_task_vectors
    from spunge.recipe.schema import AnyMerge
    from spunge.weights.task_vector import TaskVector

    merger = _chosen(AnyMerge, "merge", "method", method, settings)
    if isinstance(task_vectors, str | Path | TaskVector):
        raise RecipeError("merge: give several task vectors, as a list or by name")
    if not isinstance(task_vectors, Mapping):
        task_vectors = {f"task_vector_{number}": vector for number, vector in enumerate(task_vectors, 1)}
    opened = {name: each if isinstance(each, TaskVector) else _open(each) for name, each in task_vectors.items()}
    return merge_task_vectors(merger, opened).task_vector


def evaluate(
    model: str | Path | LanguageModel,
    vector: TaskVector | str | Path | None = None,
    suites: Suite | Sequence[Suite] = (),
    *,
    out: str | Path | None = None,
    device: str = "auto",
    progress: Progress = silent,
    allow_code: bool = False,
) -> OpenedRun:
    """Asks a model, or model + task vector, the questions of some suites, as `spunge evaluate` does.

    Args:
        model: The base model.
        vector: What to add to it, a part of a run (`"runs/x:joint"`) among others; None asks the base model itself.
        suites: One or several, each a recipe or a YAML list of evaluators in a file, a suite that ships with Spunge,
            the settings of an evaluator as a mapping, or an evaluator.
        out: A new directory for answers and scores; None keeps them in memory alone.
        device: Where to compute.
        progress: Told of every step.
        allow_code: Whether code that a suite names may run.

    Returns:
        `scores` with their intervals, and every answer as `items`.

    Raises:
        SpungeError: Something is missing or wrong; `out` does not exist afterwards.
    """
    from spunge.report.opened import OpenedRun
    from spunge.run import standalone

    listed = suites if isinstance(suites, Sequence) and not isinstance(suites, str) else [suites]
    evaluators = [evaluator for suite in listed for evaluator in _evaluators(suite, allow_code=allow_code)]
    if not evaluators:
        raise RecipeError("evaluate: no suites: name a recipe, a suite, or an evaluator's settings")
    with _new_or_temporary(out) as directory, _on_disk(vector) as path:
        step = standalone.Step(_handle(model), directory, 0, device, progress=progress)
        standalone.evaluate(step, evaluators, path)
        return OpenedRun.read(directory, whole=out is None)


def export(
    source: TaskVector | str | Path,
    out: str | Path,
    *,
    model: str | Path | LanguageModel | None = None,
    seed: int | None = None,
    variant: str = "merged",
    form: Literal["checkpoint", "task-vector", "adapter"] = "checkpoint",
    rank: int = 64,
) -> Path:
    """Writes an unlearned model with a model card, as `spunge export` does.

    Args:
        source: A run's directory, or a part of it (`"runs/x:subset:women"`); or, with a model, a task vector.
        out: The new directory.
        model: The base model of a task vector.
        seed: Which of a run's seeds; None is the first.
        variant: Which of a run's models: `merged`, `joint`, `subset:women`.
        form: As what.
        rank: Of an adapter that is not exact.

    Returns:
        The directory.

    Raises:
        SpungeError: Something is missing or wrong; `out` does not exist afterwards.
    """
    from spunge.run import parts, standalone
    from spunge.weights.task_vector import TaskVector

    written = standalone.parse_form(form, rank)
    if model is None:
        if isinstance(source, TaskVector):
            raise RecipeError("export: a task vector is added to a model: give the base model as model=…")
        found = source if Path(source).is_dir() else parts.find(source)
        part = found if isinstance(found, parts.Part) else parts.part(source, variant, seed)
        standalone.export_part(part, Path(out), form=written)
        return Path(out)
    if seed is not None or variant != "merged":
        raise RecipeError("export: seed and variant say which of a run's: leave them out with a task vector")
    with _on_disk(source) as path:
        assert path is not None
        standalone.export(_handle(model), path, Path(out), form=written)
    return Path(out)


def push_to_hub(directory: str | Path, repository: str, *, private: bool = True, message: str | None = None) -> str:
    """Uploads what `export` wrote to the hub: a checkpoint, an adapter or a task vector, with its card.

    Args:
        directory: What `export`, `merge` or `unlearn` wrote.
        repository: `owner/name`; made where there is none.
        private: Whether a new repository is.
        message: Of the commit.

    Returns:
        The address of the commit.

    Raises:
        ArtifactError: There is no such thing, it is damaged, or the hub does not take it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    from spunge.errors import ArtifactError, hub_refusal
    from spunge.weights import seal
    from spunge.weights.task_vector import FILE, TaskVector

    path = Path(directory)
    if (path / FILE).exists():
        TaskVector.open(path).verify()
    elif not (path / seal.SEAL).exists():
        raise ArtifactError(f"{path}: nothing that export, merge or unlearn wrote (no {FILE}, no {seal.SEAL})")
    else:
        seal.verify(path)
    try:
        hub = HfApi(library_name="spunge")
        hub.create_repo(repository, private=private, exist_ok=True)
        return str(
            hub.upload_folder(folder_path=path, repo_id=repository, commit_message=message or "Upload by Spunge")
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ArtifactError(f"{repository}: the hub does not take it: {hub_refusal(error, repository)}") from error


def load_vector(source: str | Path, *, model: str | Path | LanguageModel | None = None) -> TaskVector:
    """Reads a task vector into memory.

    Args:
        source: Its directory, or a part of a run: `"runs/x:subset:women"`, at the λ at which the run asked it.
        model: The base model, of which an adapter or a checkpoint is made a task vector.

    Raises:
        ArtifactError: There is none, or it is damaged.
        IncompatibleTaskVectors: It is of another model.
    """
    from spunge import merging

    if model is None:
        return _open(source).loaded()
    return merging.open_variant(source, _handle(model).checkpoint()).loaded()


def _open(source: str | Path) -> TaskVector:
    """Opens a task vector's directory or a part of a run."""
    from spunge.run import parts
    from spunge.weights.task_vector import TaskVector

    found = parts.find(source)
    return TaskVector.open(found.path).scaled(found.scale) if isinstance(found, parts.Part) else TaskVector.open(found)


def _handle(model: str | Path | LanguageModel) -> LanguageModel:
    return load(model) if isinstance(model, str | Path) else model


def _corpus(data: Any) -> Corpus:
    """Rows as they are, or whatever `rows` reads."""
    from spunge.rows.sources import Corpus

    return data if isinstance(data, Corpus) else rows(data)


def _chosen(kind: Any, section: str, discriminator: str, method: Any, settings: Mapping[str, Any]) -> Any:
    """A method by name with its settings, or one that is whole already."""
    from spunge.recipe import reading

    if isinstance(method, str):
        return reading.validate(kind, {discriminator: method, **settings}, section)
    if settings:
        raise RecipeError(f"{section}.{next(iter(settings))}: {type(method).__name__} holds its settings: set it there")
    return method


def _evaluators(suite: Suite, *, allow_code: bool) -> list[Evaluator]:
    from spunge.recipe import reading
    from spunge.recipe.schema import AnyEvaluate

    if isinstance(suite, str | Path):
        return reading.read_suite(str(suite), allow_code=allow_code)
    if isinstance(suite, Mapping):
        return [reading.validate(AnyEvaluate, suite, "evaluate", allow_code=allow_code)]
    return [suite]


@contextmanager
def _new_or_temporary(out: str | Path | None) -> Iterator[Path]:
    """Where a step writes: where it is asked to, or where it is gone afterwards."""
    if out is not None:
        yield Path(out)
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary) / "out"


@contextmanager
def _on_disk(vector: TaskVector | str | Path | None) -> Iterator[str | Path | None]:
    """A task vector as what a step reads, a directory or a part; one in memory lies there until the step is done."""
    if vector is None or isinstance(vector, str | Path):
        yield vector
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield vector.save(Path(temporary) / "task-vector")

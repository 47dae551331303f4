"""The Python API: what the command line does, as two functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spunge.interfaces import Progress, silent
from spunge.mergers import AnyMerger
from spunge.merging import merge as merge_task_vectors
from spunge.recipe import reading
from spunge.recipe.schema import Experiment
from spunge.run import pipeline
from spunge.run.compute import Compute
from spunge.weights.task_vector import TaskVector


def run(
    recipe: str | Path | Experiment,
    *settings: str,
    out: str | Path = "runs",
    allow_code: bool = False,
    progress: Progress = silent,
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
        The run's directory; `report/results.json` in it holds every figure.

    Raises:
        SpungeError: Something is missing or wrong; the message says what.
    """
    if isinstance(recipe, Experiment):
        experiment = reading.override(recipe, settings, allow_code=allow_code)
    else:
        experiment = reading.read(recipe, settings, allow_code=allow_code)
    return pipeline.run(experiment, out=out, compute=Compute(**compute), progress=progress)


def merge(
    task_vectors: Sequence[TaskVector | str | Path] | Mapping[str, TaskVector | str | Path],
    method: str = "ties",
    **settings: Any,
) -> TaskVector:
    """Merges task vectors of one base model into one.

    Args:
        task_vectors: Task vectors or their directories; by name where settings speak of single ones (`weights`).
        method: A merge method (`spunge methods` lists them).
        **settings: The method's own.

    Raises:
        RecipeError: A setting is unknown or wrong.
        IncompatibleTaskVectors: They do not belong to one base model.
    """
    merger = reading.validate(AnyMerger, {"method": method, **settings}, "merge")
    if not isinstance(task_vectors, Mapping):
        task_vectors = {f"task_vector_{number}": vector for number, vector in enumerate(task_vectors, 1)}
    return merge_task_vectors(merger, task_vectors).task_vector

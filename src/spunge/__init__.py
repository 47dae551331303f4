"""SPlit, UNlearn, merGE: make a language model forget, attribute by attribute, and show what went and what stayed.

This is the Python API: what the command line does, as two functions, and the names that they are used with. Importing
it imports neither torch nor pydantic; each function fetches what it needs.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from spunge.errors import SpungeError
    from spunge.interfaces import Progress
    from spunge.recipe.schema import Experiment
    from spunge.rows.sources import Corpus, Source
    from spunge.weights.language_model import LanguageModel
    from spunge.weights.task_vector import LowRank, TaskVector

__all__ = [
    "Corpus",
    "Experiment",
    "LanguageModel",
    "LowRank",
    "Source",
    "SpungeError",
    "TaskVector",
    "merge",
    "run",
]

_MODULES = {
    "Corpus": "rows.sources",
    "Experiment": "recipe.schema",
    "LanguageModel": "weights.language_model",
    "LowRank": "weights.task_vector",
    "Source": "rows.sources",
    "SpungeError": "errors",
    "TaskVector": "weights.task_vector",
}

_MOVED = {
    "spunge.data": "spunge.rows.sources",
    "spunge.evaluate": "spunge.evaluators",
    "spunge.experiment": "spunge.recipe.schema",
    "spunge.language_model": "spunge.weights.language_model",
    "spunge.merge": "spunge.mergers",
    "spunge.split": "spunge.splitters",
    "spunge.task_vector": "spunge.weights.task_vector",
    "spunge.unlearn": "spunge.unlearners",
}
"""Modules that version 0.1 promised, and where their contents are now."""


class _Moved(MetaPathFinder):
    """Says where a module of version 0.1 is now; asked last, when no other finder knows the module."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name in _MOVED:
            raise ModuleNotFoundError(f"{name} has moved: import from {_MOVED[name]}", name=name)


sys.meta_path.append(_Moved())


class _Package(ModuleType):
    """Keeps `spunge.run` the function, though `spunge/run/` is the room of what it takes.

    Importing a subpackage sets it as its parent's attribute; `from spunge.run import pipeline` needs no such attribute.
    """

    @property
    def run(self) -> Callable[..., Path]:
        """The function below."""
        return self.__dict__["run"]

    @run.setter
    def run(self, subpackage: ModuleType) -> None:
        pass


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    # Importing a recipe's settings must not import torch, so public names are fetched when they are asked for.
    if name not in _MODULES:
        raise AttributeError(f"module 'spunge' has no attribute {name!r}")
    return getattr(importlib.import_module(f"spunge.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__


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
        The run's directory; `report/results.json` in it holds every figure.

    Raises:
        SpungeError: Something is missing or wrong; the message says what.
    """
    from spunge.interfaces import silent
    from spunge.recipe import reading
    from spunge.recipe.schema import Experiment
    from spunge.run import pipeline
    from spunge.run.compute import Compute

    if isinstance(recipe, Experiment):
        experiment = reading.override(recipe, settings, allow_code=allow_code)
    else:
        experiment = reading.read(recipe, settings, allow_code=allow_code)
    return pipeline.run(experiment, out=out, compute=Compute(**compute), progress=progress or silent)


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
    from spunge.mergers import AnyMerger
    from spunge.merging import merge as merge_task_vectors
    from spunge.recipe import reading

    merger = reading.validate(AnyMerger, {"method": method, **settings}, "merge")
    if not isinstance(task_vectors, Mapping):
        task_vectors = {f"task_vector_{number}": vector for number, vector in enumerate(task_vectors, 1)}
    return merge_task_vectors(merger, task_vectors).task_vector

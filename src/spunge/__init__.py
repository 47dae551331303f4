"""SPlit, UNlearn, merGE: make a language model forget, attribute by attribute, and show what went and what stayed.

These are the names of the Python API: its functions are in `api`, and the classes are those that they take and return.
Importing this imports neither torch nor pydantic; each name is fetched when it is asked for.
"""

from __future__ import annotations

import importlib
import sys
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spunge.api import evaluate, export, load, load_vector, merge, open, push_to_hub, rows, run, split, unlearn
    from spunge.errors import SpungeError
    from spunge.recipe.schema import Experiment
    from spunge.report.opened import OpenedRun
    from spunge.rows.sources import Corpus, Source
    from spunge.weights.language_model import LanguageModel
    from spunge.weights.task_vector import LowRank, TaskVector

__all__ = [
    "Corpus",
    "Experiment",
    "LanguageModel",
    "LowRank",
    "OpenedRun",
    "Source",
    "SpungeError",
    "TaskVector",
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

_MODULES = dict.fromkeys(__all__, "api") | {
    "Corpus": "rows.sources",
    "Experiment": "recipe.schema",
    "LanguageModel": "weights.language_model",
    "LowRank": "weights.task_vector",
    "OpenedRun": "report.opened",
    "Source": "rows.sources",
    "SpungeError": "errors",
    "TaskVector": "weights.task_vector",
}
"""Public name → the module below the package that it is fetched from: the functions from `api`."""

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
    """Keeps `spunge.run` and `spunge.rows` the functions, though `run/` and `rows/` are the rooms of what they take.

    Importing a subpackage sets it as its parent's attribute; `from spunge.run import pipeline` needs no such attribute.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _MODULES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    # Importing a recipe's settings must not import torch, so public names are fetched when they are asked for.
    if name not in _MODULES:
        raise AttributeError(f"module 'spunge' has no attribute {name!r}")
    return getattr(importlib.import_module(f"spunge.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__

"""SPlit, UNlearn, merGE: make a language model forget, attribute by attribute, and show what went and what stayed."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from spunge.api import merge, run
    from spunge.data import Corpus, Source
    from spunge.errors import SpungeError
    from spunge.experiment import Experiment
    from spunge.language_model import LanguageModel
    from spunge.task_vector import LowRank, TaskVector

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

_HOMES = {
    "Corpus": "data",
    "Experiment": "experiment",
    "LanguageModel": "language_model",
    "LowRank": "task_vector",
    "Source": "data",
    "SpungeError": "errors",
    "TaskVector": "task_vector",
    "run": "api",
}


class _Package(ModuleType):
    """Keeps `spunge.merge` the function, though `spunge/merge/` is the package of its methods.

    Importing a subpackage would set it as the attribute of that name; `from spunge.merge import Ties` needs none.
    """

    @property
    def merge(self) -> Callable[..., TaskVector]:
        """`spunge.api.merge`."""
        from spunge import api

        return api.merge

    @merge.setter
    def merge(self, subpackage: ModuleType) -> None:
        pass


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    # Importing a recipe's settings must not import torch, so public names are fetched when they are asked for.
    if name not in _HOMES:
        raise AttributeError(f"module 'spunge' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"spunge.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__

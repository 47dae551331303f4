"""Code that a recipe names, `package.module:name`: whether it may run, and where it is looked for.

A recipe with such a name is a program of its author's. Python's own callers are programs already; so only what comes as
text is asked for permission, and the question stands where the code would run, not beside it.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from spunge.errors import first_line

_TARGET = re.compile(r"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<name>[^\W\d]\w*)")
_ALLOWED: ContextVar[bool] = ContextVar("allowed", default=True)
_FOLDER: ContextVar[Path | None] = ContextVar("folder", default=None)
_beside: dict[str, Path] = {}
"""Module or package that a recipe has named → the recipe's directory."""


@contextmanager
def code_from(folder: Path | None, *, allowed: bool) -> Iterator[None]:
    """Reads settings that came as text.

    Args:
        folder: Where a module that is installed nowhere may lie; None: nowhere.
        allowed: Whether what they name may run.
    """
    permission, previous = _ALLOWED.set(allowed), _FOLDER.set(folder)
    try:
        yield
    finally:
        _ALLOWED.reset(permission)
        _FOLDER.reset(previous)


def refuse_code(what: str) -> None:
    """Refuses settings that make code run which is not Spunge's, unless that was allowed.

    Raises:
        ValueError: It was not.
    """
    if not _ALLOWED.get():
        raise ValueError(
            f"{what} would run as a program, and do all that you may: read it, then give --allow-code (allow_code=True)"
        )


def load(target: str) -> Any:
    """Imports what `package.module:name` names: an installed module, or else a module beside the recipe.

    Raises:
        ValueError: It is not allowed, is not there, or fails when it is imported.
    """
    refuse_code(f"{target!r}")
    matched = _TARGET.fullmatch(target)
    if matched is None:
        raise ValueError(f"{target!r} cannot be imported: write package.module:name")
    root, folder = matched["module"].partition(".")[0], _FOLDER.get()
    if folder is not None and _beside.setdefault(root, folder) != folder:
        if root in sys.modules and getattr(sys.modules[root].__spec__, "loader_state", None) is _MARK:
            raise ValueError(
                f"{target!r}: another module {root!r} was read from {_beside[root]}; give one another name"
            )
        _beside[root] = folder
    importlib.invalidate_caches()  # the file may be a minute old
    try:
        return getattr(importlib.import_module(matched["module"]), matched["name"])
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # another's code may raise anything, and end the program as well
        kind = "" if isinstance(error, ImportError | AttributeError) else f"{type(error).__name__}: "
        raise ValueError(f"{target!r} cannot be imported: {kind}{first_line(error)}") from error


def folders() -> Mapping[str, Path]:
    """Returns what another process must be told to find the same modules; see `look_in`."""
    return dict(_beside)


def look_in(folders: Mapping[str, Path]) -> None:
    """Finds modules where another process has."""
    _beside.update(folders)


_MARK = object()


class _Beside(MetaPathFinder):
    """Finds the modules that were named, and no other, beside the recipe; asked last, so that none hides a library."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name not in _beside:
            return None
        spec = PathFinder.find_spec(name, [str(_beside[name])])
        if spec is not None:
            spec.loader_state = _MARK
        return spec


sys.meta_path.append(_Beside())

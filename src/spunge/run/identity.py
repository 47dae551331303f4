"""What a result depends on, as JSON values for a store key (see `keys`): settings by value, data by content."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping
from typing import Any

from spunge.files import FileMemory, locate
from spunge.rows.sources import Source, load_corpus
from spunge.settings import Settings, is_shipped
from spunge.weights.language_model import LanguageModel

_MEMORY: FileMemory[str] = FileMemory()
"""Every task of a run asks for the digest of the same model and data."""


def identity(value: Any) -> Any:
    """Returns what a result depends on: settings by value, data and models by content, code by version."""
    if isinstance(value, Source):
        return {"rows": _fingerprint(value)}
    if isinstance(value, Settings):
        # Of every class above as well: a method that names its own must not bring its base's back into the key.
        outside = frozenset().union(*(vars(kind).get("outside_key", ()) for kind in type(value).__mro__))
        outside |= {getattr(value, "scaled_by", None)}
        later = frozenset().union(*(vars(kind).get("unkeyed_default", ()) for kind in type(value).__mro__))
        outside |= {name for name in later if getattr(value, name) == type(value).model_fields[name].default}
        content = {}
        if {"id", "revision"} <= type(value).model_fields.keys():  # a model: what counts is its files
            model = LanguageModel(id=getattr(value, "id"), revision=getattr(value, "revision"))  # noqa: B009
            content, outside = {"digest": digest(model)}, outside | {"id", "revision"}
        fields = {
            info.alias or name: identity(getattr(value, name))
            for name, info in type(value).model_fields.items()
            if name not in outside
        }
        others = {"depends_on": value.depends_on} if value.depends_on else {}
        return {"class": _class(type(value)), "version": type(value).version, **others, **content, **fields}
    if isinstance(value, Mapping):
        return {str(name): identity(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [identity(part) for part in value]
    return value


def _class(kind: type) -> str | list[str]:
    """A class by name; one from outside the package by its source too, since its version is nobody's promise."""
    if is_shipped(kind):
        return kind.__name__
    return [f"{kind.__module__}:{kind.__qualname__}", hashlib.sha256(inspect.getsource(kind).encode()).hexdigest()]


def digest(model: LanguageModel, *, weights: bool = True) -> str:
    """Returns the digest of a model's files, read once while they stay as they are; see `LanguageModel.digest`."""
    directory = locate(model.id)  # a hub id is none: what a process has fetched does not change under it
    files = [path for path in directory.iterdir() if path.is_file()] if directory.is_dir() else []
    name = f"{model.model_dump_json()} {weights}"
    return _MEMORY.recall(name, files, lambda: model.digest(weights=weights))


def _fingerprint(source: Source) -> str:
    return _MEMORY.recall(
        source.model_dump_json(), source.files(), lambda: load_corpus([source], require="rows").full_fingerprint
    )

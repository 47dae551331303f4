"""What an experiment takes from the hub, and how to have all of it from a folder instead.

Below the folder, a model `owner/name` is the directory `owner/name`, and a split of a data set the file
`owner/name/split.jsonl`, or `owner/name/configuration/split.jsonl` where it has configurations (or .json, .parquet,
.csv), with the columns that it has on the hub.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from spunge.errors import DataError, ModelError
from spunge.files import is_local, locate
from spunge.rows.readers import SUFFIXES
from spunge.rows.sources import Source, is_hub_id
from spunge.settings import Settings

S = TypeVar("S", bound=Settings)


def from_folder(settings: S, root: Path) -> S:
    """Returns settings in which every model and data set of the hub is the one below `root`.

    Raises:
        DataError: A data set is not there, or `root` is no directory.
        ModelError: A model is not there.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such directory")
    return _rewritten(settings, root)


def hub_references(value: Any) -> Iterator[Any]:
    """Yields every source and model of the hub that settings name, in order, as often as they do."""
    if isinstance(value, Source):
        if is_hub_id(value.path):
            yield value
        return
    if is_model(value) and not is_local(value.id):
        yield value
    if isinstance(value, Settings):
        value = {name: getattr(value, name) for name in type(value).model_fields}
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for part in value:
            yield from hub_references(part)


def is_model(value: Any) -> bool:
    """Says whether settings are the handle of a model."""
    return isinstance(value, Settings) and {"id", "revision"} <= type(value).model_fields.keys()


def stem(source: Source) -> str:
    """Returns where a split of a data set lies below the folder, without its suffix."""
    return "/".join(filter(None, (source.path, source.name, source.split)))


def _rewritten(value: Any, root: Path) -> Any:
    if isinstance(value, Source):
        return _source(value, root)
    if isinstance(value, Settings):
        changed = {name: _rewritten(getattr(value, name), root) for name in type(value).model_fields}
        if is_model(value):
            changed |= _model(changed["id"], root)
        if "offline_root" in changed:
            changed["offline_root"] = str(root)
        update = {name: part for name, part in changed.items() if part is not getattr(value, name)}
        return value.model_copy(update=update)
    if isinstance(value, Mapping):
        return {name: _rewritten(part, root) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_rewritten(part, root) for part in value)
    return value


def _model(name: str, root: Path) -> dict[str, Any]:
    if locate(name).exists():
        return {}
    if not (root / name / "config.json").is_file():
        raise ModelError(f"{root / name}: no model directory there; put {name} there as the hub has it")
    return {"id": str(root / name), "revision": None}


def _source(source: Source, root: Path) -> Source:
    if locate(source.path).exists():
        return source
    name = stem(source) if is_hub_id(source.path) else source.path
    for suffix in SUFFIXES if is_hub_id(source.path) else ("",):
        if (file := root / f"{name}{suffix}").is_file():
            return source.model_copy(update={"path": str(file), "name": None, "split": "train", "revision": None})
    wanted = f"{name}.jsonl" if is_hub_id(source.path) else name
    raise DataError(f"{root / wanted}: no such file; put the split {source.split!r} of {source.path} there")

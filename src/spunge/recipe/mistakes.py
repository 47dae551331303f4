"""Says what is wrong with settings: pydantic's errors as one line with the place, the reason and the nearest name."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError


def in_file(
    error: ValidationError, settings: Any, document: Any, name: str, overrides: Mapping[tuple[str, ...], str], root: Any
) -> str:
    """Returns what is wrong with the settings of a file, with its line and column, or the override that did it.

    Args:
        error: What pydantic found.
        settings: The settings as they were validated, overrides included.
        document: The same as ruamel read them, with positions.
        name: The file's name.
        overrides: The keys that the command line set → the word that did.
        root: The class that the settings were validated against.
    """
    first = _most_telling(error)
    path = _path(first["loc"], settings)
    given = next((word for key, word in overrides.items() if tuple(map(str, path[: len(key)])) == key), None)
    # What a validator of the whole recipe says begins with the setting that it is about.
    place = path or _reason(first).split(":")[0].split(".")
    where = f"override {given!r}" if given else f"{name}:{_position(document, place)}"
    dotted = ".".join(map(str, path))
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{where}: {f'{dotted}: ' if dotted else ''}{_reason(first)}{_hint(first, root, path)}{more}"


def in_settings(error: ValidationError, settings: Mapping[str, Any], where: str, root: Any) -> str:
    """Returns what is wrong with settings that stand in no file; `where` is the section that they belong to."""
    first = _most_telling(error)
    path = _path(first["loc"], settings)
    return f"{'.'.join([where, *map(str, path)])}: {_reason(first)}{_hint(first, root, path)}"


def models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yields the settings classes that an annotation names, members of unions among them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from models(inner)


def tag(kind: type[BaseModel]) -> str | None:
    """Returns the name that a recipe calls a method by."""
    field = kind.model_fields.get("method") or kind.model_fields.get("by")
    return field.default if field else None


def near(name: str, known: Iterable[str]) -> str:
    """Returns a hint at the known name that is meant, or at what is known; nothing where nothing is."""
    known = list(dict.fromkeys(known))
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there is {', '.join(known[:30])}" if known else ""


def as_written(key: Any) -> str:
    """A key as it was written: YAML reads `null: drop` and `true: x` as other things than names."""
    if key is None:
        return "null"
    return str(key).lower() if isinstance(key, bool) else str(key)


def _most_telling(error: ValidationError) -> Any:
    """A misspelt setting says more than the one that is then missing."""
    return min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")


def _path(location: Sequence[int | str], settings: Any) -> list[int | str]:
    """A pydantic location without the tags of unions, which are no keys of the recipe."""
    path: list[int | str] = []
    place = settings
    untagged = True  # whether the tag of the union that `place` is a member of is still to come
    for index, part in enumerate(location):
        if isinstance(place, Mapping):
            last = index == len(location) - 1
            if untagged and _is_tag(part, place) and not last:
                untagged = False
            elif part in place:
                path.append(part)
                place, untagged = place[str(part)], True
            elif last and not _is_tag(part, place):
                path.append(part)
        elif isinstance(place, list) and isinstance(part, int) and part < len(place):
            path.append(part)
            place, untagged = place[part], True
    return path


def _is_tag(part: int | str, place: Mapping[str, Any]) -> bool:
    return part in (place.get("method"), place.get("by"))


def _reason(error: Any) -> str:
    kind, given = error["type"], error.get("input")
    if kind == "extra_forbidden":
        return "unknown setting"
    if kind == "missing":
        return "this setting is required"
    if kind == "union_tag_invalid":
        return f"unknown {_discriminator(error)} {error['ctx']['tag']!r}"
    if kind == "union_tag_not_found":
        return f"say its {_discriminator(error)}"
    if kind == "value_error":
        return str(error["ctx"]["error"])
    shown = f" (got {given!r})" if isinstance(given, str | int | float | bool) or given is None else ""
    return f"{error['msg']}{shown[:120]}"


def _discriminator(error: Any) -> str:
    return error["ctx"]["discriminator"].strip("'")


def _hint(error: Any, root: Any, path: Sequence[int | str]) -> str:
    if error["type"] == "union_tag_invalid":
        expected = re.findall(r"'([^']*)'", error["ctx"]["expected_tags"])
        return near(str(error["ctx"]["tag"]), expected)
    if error["type"] == "extra_forbidden" and path:
        tags = [part for part in error["loc"] if isinstance(part, str)]
        return near(str(path[-1]), _names_at(root, path[:-1], tags))
    return ""


def _names_at(root: Any, path: Sequence[int | str], tags: Sequence[str]) -> list[str]:
    """The settings that exist where `path` leads; of a union, the members that a tag on the way names."""
    kinds = list(models(root))
    for part in path:
        if isinstance(part, int):
            continue
        kinds = [
            inner
            for kind in kinds
            for name, known in kind.model_fields.items()
            if part in (name, known.alias)
            for inner in models(known.annotation)
        ]
    tagged = [kind for kind in kinds if tag(kind) in tags]
    return [name for kind in tagged or kinds for name in _names(kind)]


def _names(kind: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in kind.model_fields.items()]


def _position(document: Any, path: Sequence[int | str]) -> str:
    line, column = 0, 0
    place = document
    for part in path:
        known = getattr(getattr(place, "lc", None), "data", None) or {}
        written = [key for key in known if part in (key, as_written(key))]
        if written:
            line, column = known[written[0]][:2]
        elif not (isinstance(place, dict) and part in place):
            break
        place = place[written[0] if written else part]
    return f"{line + 1}:{column + 1}"

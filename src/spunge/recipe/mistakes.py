"""Says what is wrong with settings in one line: the place that `yaml` noted, pydantic's reason, the nearest name."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from spunge.errors import shortened
from spunge.recipe.paths import dotted, undotted
from spunge.recipe.yaml import Document


def in_document(error: ValidationError, document: Document, root: Any) -> str:
    """Returns what is wrong with the settings of a document, with its line and column or the override that did it.

    Args:
        error: What pydantic says.
        document: The settings as they were validated, overrides included.
        root: The class that they were validated against.
    """
    first = _most_telling(error)
    path = _path(first["loc"], document.settings)
    # What a validator of the whole recipe says begins with the setting that it is about.
    origin = document.origin(tuple(map(str, path)) or undotted(_reason(first, root, path).split(":")[0]))
    setting = f"{dotted(path)}: " if path else ""
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return shortened(f"{origin}: {setting}{_reason(first, root, path)}{_hint(first, root, path)}{more}")


def in_settings(error: ValidationError, settings: Mapping[str, Any], section: str, root: Any) -> str:
    """Returns what is wrong with settings that stand in no file; `section` is where they belong."""
    first = _most_telling(error)
    path = _path(first["loc"], settings)
    dotted_path = ".".join(filter(None, [section, dotted(path)]))
    return shortened(f"{dotted_path}: {_reason(first, root, path)}{_hint(first, root, path)}")


def models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yields the settings classes that an annotation names, members of unions among them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from models(inner)


def discriminator(kind: type[BaseModel]) -> str | None:
    """Returns the setting that tells a method from others of its kind; None where nothing does."""
    return next((name for name in ("method", "by") if name in kind.model_fields), None)


def tag(kind: type[BaseModel]) -> str | None:
    """Returns the name that a recipe calls a method by."""
    name = discriminator(kind)
    return kind.model_fields[name].default if name else None


def near(name: str, candidates: Iterable[str]) -> str:
    """Returns a hint at the candidate that is meant, or at all of them; nothing where there is none."""
    names = list(dict.fromkeys(candidates))
    if alike := _closest(name, names):
        return f"; did you mean {alike!r}?"
    return f"; there is {', '.join(names[:30])}" if names else ""


def _closest(name: str, names: Sequence[str]) -> str | None:
    """The name of which this one has the initials (lr, bs), or that is spelt most like it, if any is."""
    for one in names:
        if len(name) > 1 and name.lower() == "".join(re.findall(r"(?<![a-z])[a-z]", one.lower())):
            return one
    spelt = {candidate.lower(): candidate for candidate in reversed(names)}
    close = difflib.get_close_matches(name.lower(), spelt, n=1, cutoff=0.6)
    return spelt[close[0]] if close else None


def _most_telling(error: ValidationError) -> Any:
    """A misspelt setting says more than the one that is then missing."""
    return min(error.errors(), key=lambda mistake: mistake["type"] != "extra_forbidden")


def _path(location: Sequence[int | str], settings: Any) -> list[int | str]:
    """A pydantic location without the tags of unions, which are no keys of the recipe."""
    path: list[int | str] = []
    section = settings
    untagged = True  # whether the tag of the union that `section` is a member of is still to come
    for index, key in enumerate(location):
        if isinstance(section, Mapping):
            last = index == len(location) - 1
            if untagged and _is_tag(key, section) and not last:
                untagged = False
            elif key in section:
                path.append(key)
                section, untagged = section[str(key)], True
            elif last and not _is_tag(key, section):
                path.append(key)
        elif isinstance(section, list) and isinstance(key, int) and key < len(section):
            path.append(key)
            section, untagged = section[key], True
    return path


def _is_tag(key: int | str, section: Mapping[str, Any]) -> bool:
    return key in (section.get("method"), section.get("by"))


def _reason(error: Any, root: Any, path: Sequence[int | str]) -> str:
    kind, value = error["type"], error.get("input")
    if kind in _SECTION_WANTED and isinstance(value, str | int | float):
        return f"a section is wanted{_written_out(value, _kinds_at(root, path))} (got {value!r})"
    if kind == "list_type" and isinstance(value, str | int | float):
        return f"a list is wanted: write [{value}] (got {value!r})"
    if kind == "list_type" and isinstance(value, Mapping):
        return "a list is wanted: put it in [ ], or each part on lines of its own that begin with `-`"
    if kind == "extra_forbidden":
        return "unknown setting"
    if kind == "missing":
        return "this setting is required"
    if kind == "union_tag_invalid":
        return f"unknown {_wanted_discriminator(error)} {error['ctx']['tag']!r}"
    if kind == "union_tag_not_found":
        return f"say its {_wanted_discriminator(error)}"
    if kind == "value_error":
        return str(error["ctx"]["error"])
    shown = f" (got {value!r})" if isinstance(value, str | int | float | bool) or value is None else ""
    return f"{error['msg']}{shown[:120]}"


_SECTION_WANTED = ("model_type", "model_attributes_type", "dict_type")


def _written_out(value: Any, kinds: Sequence[type[BaseModel]]) -> str:
    """How somebody who wrote the one thing that matters has to spell its section; nothing where that is not known."""
    for kind in kinds:
        if tag(kind) == value:
            return f": write {{{discriminator(kind)}: {value}}}"
    for kind in kinds:
        required = {field.alias or name: field for name, field in kind.model_fields.items() if field.is_required()}
        if len(required) == 1:
            ((name, field),) = required.items()
            by = f"by: {tag(kind)}, " if "by" in kind.model_fields else ""
            inner = _listed(field.annotation, value) if typing.get_origin(field.annotation) is list else value
            return f": write {{{by}{name}: {inner}}}"
    return ""


def _listed(annotation: Any, value: Any) -> str:
    """A list of the one section whose setting that matters has this value."""
    part = next(models(annotation), None)
    first = next((name for name, field in part.model_fields.items() if field.is_required()), None) if part else None
    return f"[{{{first}: {value}}}]" if first else f"[{value}]"


def _wanted_discriminator(error: Any) -> str:
    return error["ctx"]["discriminator"].strip("'")


def _hint(error: Any, root: Any, path: Sequence[int | str]) -> str:
    if error["type"] == "union_tag_invalid":
        expected = re.findall(r"'([^']*)'", error["ctx"]["expected_tags"])
        return near(str(error["ctx"]["tag"]), expected)
    if error["type"] == "extra_forbidden" and path:
        tags = [key for key in error["loc"] if isinstance(key, str)]
        name = str(path[-1])
        known = _names_at(root, path[:-1], tags)
        elsewhere = [section for section in _sections_with(root, name) if section != path[0]]
        if elsewhere and len(path) == 2:
            alike = _closest(name, known)
            return f"; did you mean {elsewhere[0]}.{name}{f', or {alike!r} here' if alike else ''}?"
        # Where a class from outside lacks what its kind has elsewhere, the name is spelt right: nothing to suggest.
        return "" if name in known else near(name, known)
    return ""


def _sections_with(root: Any, name: str) -> list[str]:
    """The sections of a recipe, written once each, that have a setting of this name in whatever they hold."""
    return [
        field.alias or section
        for kind in models(root)
        for section, field in kind.model_fields.items()
        if typing.get_origin(field.annotation) is not list
        and any(name in _names(inner) for inner in models(field.annotation))
    ]


def _names_at(root: Any, path: Sequence[int | str], tags: Sequence[str]) -> list[str]:
    """The settings that exist where `path` leads; of a union, the members that a tag on the way names."""
    kinds = _kinds_at(root, path)
    tagged = [kind for kind in kinds if tag(kind) in tags]
    return [name for kind in tagged or kinds for name in _names(kind)]


def _kinds_at(root: Any, path: Sequence[int | str]) -> list[type[BaseModel]]:
    """The settings classes that may stand where `path` leads."""
    kinds = list(models(root))
    for key in path:
        if isinstance(key, int):
            continue
        kinds = [
            inner
            for kind in kinds
            for name, field in kind.model_fields.items()
            if key in (name, field.alias)
            for inner in models(field.annotation)
        ]
    return kinds


def _names(kind: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in kind.model_fields.items()]

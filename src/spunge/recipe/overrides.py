"""Overrides: `key=value` words, such as `unlearn.alpha=100`, put into settings that were read before."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from spunge.errors import RecipeError
from spunge.recipe import yaml
from spunge.recipe.paths import KEY, Path, undotted
from spunge.recipe.yaml import Document

# The first key is the name of a setting, so that `./a=b` and `A/b=c` are paths to `spunge merge`.
_WORD = re.compile(rf"([a-z_][a-z0-9_]*(?:\.{KEY})*)=(.*)", re.DOTALL)


def is_setting(word: str) -> bool:
    """Says whether a word of the command line is `key=value`; `./a=b` is a path."""
    return _WORD.fullmatch(word) is not None


def split(word: str) -> tuple[Path, str]:
    """Splits a word into the path that its key stands for, and the text of its value.

    A key with other signs than letters, digits, `_` and `-` is quoted: `subsets."physical disability".alpha=2`.

    Raises:
        RecipeError: The word is no setting.
    """
    match = _WORD.fullmatch(word)
    if match is None:
        raise RecipeError(
            f"{word!r} is not a setting: write key=value, such as unlearn.alpha=100 "
            'or subsets."a name with spaces".alpha=100'
        )
    try:
        return undotted(match[1]), match[2]
    except ValueError as error:
        raise RecipeError(f"{word!r}: a quoted name in it cannot be read: {error}") from error


def parse(words: Sequence[str]) -> dict[str, Any]:
    """Turns `key=value` words into nested settings; values are YAML.

    Raises:
        RecipeError: A word is no setting, or its value is no YAML.
    """
    document = Document({}, {})
    apply(document, words)
    return document.settings


def apply(document: Document, words: Sequence[str]) -> None:
    """Puts the values of `key=value` words into a document, and notes that they are where those settings are from.

    Raises:
        RecipeError: A word is no setting, its value is no YAML, or its key leads nowhere.
    """
    for word in words:
        path, text = split(word)
        value = yaml.load(text, f"{word!r}: the value").settings
        section = document.settings
        for key in path[:-1]:
            section = _enter(section, key, word)
        section[_index(section, path[-1], word) if isinstance(section, list) else path[-1]] = value
        # What was below the path before is gone, so a mistake there is the override's.
        replaced = [other for other in document.origins if other[: len(path)] == path]
        for other in replaced:
            del document.origins[other]
        document.origins[path] = f"override {word!r}"


def _enter(section: Any, key: str, word: str) -> Any:
    inner = section[_index(section, key, word)] if isinstance(section, list) else section.setdefault(key, {})
    if inner is None and isinstance(section, dict):
        inner = section[key] = {}
    if not isinstance(inner, dict | list):
        raise RecipeError(f"{word!r}: {key!r} is a plain value and holds no settings")
    return inner


def _index(section: list[Any], key: str, word: str) -> int:
    if not (key.isascii() and key.isdigit() and int(key) < len(section)):
        raise RecipeError(f"{word!r}: {key!r} is not the number of an entry (0 to {len(section) - 1})")
    return int(key)

"""Paths to settings, as overrides write them and messages show them: `subsets."physical disability".alpha`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

Path = tuple[str, ...]
"""The keys that lead to a setting; a list's entries are numbered from "0"."""

_PLAIN = r"""[^\s."'=/\\:]+"""
_QUOTED = r'"(?:[^"\\]|\\.)*"' + r"|'[^']*'"
KEY = rf"(?:{_PLAIN}|{_QUOTED})"
"""The pattern of one key: plain, or quoted where it holds spaces, dots or other signs."""


def dotted(path: Iterable[int | str]) -> str:
    """Returns a path in one word."""
    keys = map(str, path)
    return ".".join(key if re.fullmatch(_PLAIN, key) else json.dumps(key, ensure_ascii=False) for key in keys)


def undotted(word: str) -> Path:
    """Returns the path that a word stands for; what is no key in it is passed over.

    Raises:
        ValueError: A quoted key has a backslash that JSON does not know.
    """
    return tuple(_unquoted(key) for key in re.findall(KEY, word))


def _unquoted(key: str) -> str:
    if key[0] == "'":
        return key[1:-1]
    return json.loads(key) if key[0] == '"' else key

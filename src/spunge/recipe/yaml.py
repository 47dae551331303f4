"""Reads YAML into plain values, with the line and column of each, so that a mistake can be named with its place."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from spunge.errors import RecipeError, first_line
from spunge.recipe.paths import Path, dotted

MAX_BYTES = 1_000_000
MAX_NODES = 500_000
"""As many as a file of that size can hold, at 30 µs each; aliases may expand to no more."""
MAX_DEPTH = 50

_HALVES = re.compile("[\ud800-\udfff]")
"""No file can hold these; JSON's escapes can say them."""
_SCALARS = ("null", "bool", "int", "float", "str")
_TAG = "tag:yaml.org,2002:"
_MERGE = _TAG + "merge"


@dataclass
class Document:
    """Settings as plain values, and where each of them was written."""

    settings: Any
    origins: dict[Path, str]
    """Path → `file:line:column`, or the override that put the setting there."""

    def origin(self, path: Path) -> str:
        """Returns where a setting was written, or else the nearest setting that holds it."""
        while path not in self.origins and path:
            path = path[:-1]
        return self.origins.get(path, "recipe")

    def below(self, key: str) -> Document:
        """Returns the same settings as those of a key."""
        return Document({key: self.settings}, {(key, *path): origin for path, origin in self.origins.items()})

    def renumber(self, key: str, numbers: Sequence[int]) -> None:
        """Notes that a list's entries come from the entries with these numbers."""
        inner = {path: self.origins.pop(path) for path in [*self.origins] if path[:1] == (key,) and len(path) > 1}
        by_number: dict[str, dict[Path, str]] = {}
        for path, origin in inner.items():
            by_number.setdefault(path[1], {})[path[2:]] = origin
        for new, old in enumerate(numbers):
            for rest, origin in by_number.get(str(old), {}).items():
                self.origins[key, str(new), *rest] = origin


def load(text: str | bytes, name: str) -> Document:
    """Reads a YAML text.

    Args:
        text: The YAML.
        name: What mistakes call it: a file's name.

    Raises:
        RecipeError: It is no YAML, or holds more than a recipe may.
    """
    if len(text) > MAX_BYTES:
        raise RecipeError(f"{name}: {len(text)} bytes is more than a recipe may have ({MAX_BYTES})")
    yaml = YAML(typ="safe", pure=True)
    yaml.Composer, yaml.max_depth = _LimitedComposer, MAX_DEPTH
    try:
        node = yaml.compose(text)
        reader = _Reader(yaml.constructor, name)
        return Document(None if node is None else reader.plain(node, ()), reader.origins)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        position = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise RecipeError(f"{name}{position}: not YAML: {error.problem or error.context}") from error
    except RecipeError:
        raise
    except (YAMLError, UnicodeDecodeError, ValueError, RecursionError, OverflowError) as error:
        raise RecipeError(f"{name}: not YAML: {first_line(error)}") from error


class _LimitedComposer(Composer):
    """Stops at the first node too many."""

    nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            mark = self.parser.peek_event().start_mark
            raise MarkedYAMLError(problem="more entries than a recipe may hold", problem_mark=mark)
        return super().compose_node(parent, index)


class _Reader:
    """Makes plain values of nodes; an alias stands for a copy, so copies are counted too."""

    def __init__(self, constructor: Any, name: str) -> None:
        self.origins: dict[Path, str] = {(): f"{name}:1:1"}
        self._constructor, self._name, self._nodes = constructor, name, 0

    def plain(self, node: Node, path: Path) -> Any:
        """Returns a node's value, and notes the positions of all in it."""
        self._nodes += 1
        if self._nodes > MAX_NODES or len(path) > MAX_DEPTH:
            raise RecipeError(f"{self._name}: aliases or nesting expand to more than a recipe may hold")
        tag = str(node.tag).removeprefix(_TAG)
        if isinstance(node, MappingNode) and tag == "map":
            return self._mapping(node, path)
        if isinstance(node, SequenceNode) and tag == "seq":
            return [self._entry(number, entry, path) for number, entry in enumerate(node.value)]
        if isinstance(node, ScalarNode) and tag == "timestamp":
            return node.value  # no setting is a date, and JSON has none: it stays as it was written
        if not (isinstance(node, ScalarNode) and tag in _SCALARS):
            raise RecipeError(f"{self._at(node)}: not YAML that a recipe may hold: {tag[:60]!r}")
        value = self._constructor.construct_object(node)
        if isinstance(value, str) and _HALVES.search(value):
            raise RecipeError(
                f"{self._at(node)}: not YAML that a recipe may hold: half a character (\\ud800 to \\udfff)"
            )
        if isinstance(value, float) and not math.isfinite(value):
            setting = f"{dotted(path)}: " if path else ""
            raise RecipeError(f"{self._at(node)}: {setting}must be a finite number, not {node.value}")
        return value

    def _mapping(self, node: MappingNode, path: Path) -> dict[str, Any]:
        merge = [value for key, value in node.value if key.tag == _MERGE]
        # Merged here and not by ruamel's flatten_mapping, which lets a few lines of `<<: [*a, *a]` fill the memory.
        inherited = {key: value for source in merge for key, value in self._inherited(source, path).items()}
        settings: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                continue
            if not isinstance(key_node, ScalarNode):
                raise RecipeError(f"{self._at(key_node)}: the name of a setting must be plain text")
            key = _as_written(self.plain(key_node, path))
            if key in settings:
                raise RecipeError(f"{self._at(key_node)}: not YAML: found duplicate key {key!r}")
            self.origins[*path, key] = self._at(key_node)
            settings[key] = self.plain(value_node, (*path, key))
        return {**inherited, **settings}

    def _inherited(self, node: Node, path: Path) -> dict[str, Any]:
        """What `<<: *defaults` or `<<: [*these, *those]` brings in; the first of several wins."""
        sources = node.value if isinstance(node, SequenceNode) else [node]
        values = [self.plain(source, path) for source in reversed(sources)]
        if not all(isinstance(value, dict) for value in values):
            raise RecipeError(f"{self._at(node)}: not YAML: '<<' takes a mapping or a list of mappings")
        return {key: part for value in values for key, part in value.items()}

    def _entry(self, number: int, node: Node, path: Path) -> Any:
        self.origins[*path, str(number)] = self._at(node)
        return self.plain(node, (*path, str(number)))

    def _at(self, node: Node) -> str:
        return f"{self._name}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"


def _as_written(key: Any) -> str:
    """A key as it was written: YAML reads `null: drop` and `true: x` as other things than names."""
    if key is None:
        return "null"
    return str(key).lower() if isinstance(key, bool) else str(key)

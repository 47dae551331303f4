"""The recipes, suites and published figures that come with the package, by name."""

from __future__ import annotations

from importlib import resources
from importlib.resources.abc import Traversable

_OTHER = ("paper_results.yaml", "hub.yaml")
"""YAML files in this folder that are no recipes."""


def recipes() -> dict[str, Traversable]:
    """Returns the recipes that ship with Spunge, by name."""
    return {name: file for name, file in _yaml_files().items() if file.name not in _OTHER}


def suites() -> dict[str, Traversable]:
    """Returns the suites that ship with Spunge, by the name that `{suite: name}` calls them."""
    return _yaml_files("suites")


def _yaml_files(*folder: str) -> dict[str, Traversable]:
    files = [file for file in resources.files(__name__).joinpath(*folder).iterdir() if file.name.endswith(".yaml")]
    return {file.name.removesuffix(".yaml"): file for file in sorted(files, key=lambda file: file.name)}

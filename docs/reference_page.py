"""A page made from code for the site (`mkdocs build`): every command, method and setting, and the Python API."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import typer

PAGE = "reference.md"


def on_files(files: Any, config: Any) -> Any:
    """Adds the page to those of the site: MkDocs calls this."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, PAGE, content=reference()))
    return files


def reference() -> str:
    """Returns the page as Markdown."""
    parts = [
        "# Reference",
        "",
        "Made from the code of this version.",
        "",
        *_commands(),
        *_python(),
        *_recipe(),
        *_methods(),
    ]
    return "\n".join(parts) + "\n"


def _commands() -> Iterator[str]:
    from spunge.cli.commands import app

    yield from ("## Commands", "")
    command: Any = typer.main.get_command(app)
    for name, one in sorted(command.commands.items()):
        for words, leaf in [
            (name, one),
            *((f"{name} {sub}", part) for sub, part in getattr(one, "commands", {}).items()),
        ]:
            yield from (f"### `spunge {words}`", "", leaf.help or "", "")
            for parameter in leaf.params:
                spelt = ", ".join(f"`{option}`" for option in parameter.opts)
                yield f"- {spelt}: {getattr(parameter, 'help', None) or ''}"
            yield ""


def _python() -> Iterator[str]:
    import spunge

    yield from ("## Python", "")
    for name in spunge.__all__:
        named = getattr(spunge, name)
        yield from (f"### `spunge.{name}`", "", *_documented(name, named))
        if inspect.isclass(named):
            if hasattr(named, "model_fields"):
                yield from _fields(named)
            for member, value in list(vars(named).items()):  # a lazy class grows when it is looked at
                if _is_public(member, value):
                    yield from (f"#### `{name}.{member}`", "", *_documented(member, value))


def _documented(name: str, value: Any) -> Iterator[str]:
    """What is called how, and what its docstring says; of a property or a class the latter alone."""
    called = getattr(value, "__func__", value)
    signature = f"{name}{inspect.signature(called)}" if inspect.isfunction(called) else name
    yield from ("```text", signature, "", inspect.getdoc(value) or "", "```", "")


def _is_public(name: str, value: Any) -> bool:
    """Whether a class's attribute is one to call or read; of operators those that say what they do."""
    made = inspect.isfunction(getattr(value, "__func__", value)) or isinstance(value, property | cached_property)
    operator = name.startswith("__") and not hasattr(object, name) and bool(inspect.getdoc(value))
    return made and (operator or not name.startswith("_"))


def _recipe() -> Iterator[str]:
    from spunge.recipe.schema import Experiment

    yield from ("## A recipe", "", *_fields(Experiment))


def _methods() -> Iterator[str]:
    from spunge.recipe import schema

    for title, kinds in schema.methods().items():
        yield from (f"## Methods: {title}", "")
        for name, kind in kinds.items():
            yield from (f"### `{name}`", "", inspect.getdoc(kind) or "", "", *_fields(kind))


def _fields(kind: Any) -> Iterator[str]:
    for name, field in kind.model_fields.items():
        default = (
            "must be given" if field.is_required() else f"default `{field.get_default(call_default_factory=True)!r}`"
        )
        yield f"- `{field.alias or name}` ({default}): {' '.join((field.description or '').split())}"
    yield ""

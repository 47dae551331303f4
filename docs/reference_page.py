"""A page made from code for the site (`mkdocs build`): every command, method and setting, and the Python API."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import typer
from mkdocs.structure.files import File

PAGE = "reference.md"


def on_files(files: Any, config: Any) -> Any:
    """Adds the page to those of the site: MkDocs calls this."""
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
        signature = "" if inspect.isclass(named) else str(inspect.signature(named))
        yield from (
            f"### `spunge.{name}`",
            "",
            "```text",
            f"{name}{signature}",
            "",
            inspect.getdoc(named) or "",
            "```",
            "",
        )


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

"""Commands that list what there is: recipes, methods, and the schema of a recipe."""

from __future__ import annotations

import inspect
import json
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.table import Table

from spunge.cli.options import methods_of, screen

if TYPE_CHECKING:
    from pydantic import BaseModel


def recipes() -> None:
    """Lists the recipes that ship with Spunge."""
    from spunge.recipe import reading, shipped
    from spunge.settings import name_of

    table = Table("recipe", "method", "what it asks")
    for name in shipped.recipes():
        recipe = reading.read(name)
        table.add_row(name, name_of(recipe.unlearn), recipe.description or "")
    screen.print(table)


def methods(
    name: Annotated[
        str | None,
        typer.Argument(help="One of them, with defaults, ranges and meanings.", autocompletion=methods_of()),
    ] = None,
) -> None:
    """Lists every method with its settings, or shows one whole."""
    from spunge.errors import RecipeError
    from spunge.recipe import mistakes, schema

    listed = schema.methods()
    if name is not None:
        kinds = {tag: (title, kind) for title, kinds in listed.items() for tag, kind in kinds.items()}
        if name not in kinds:
            raise RecipeError(f"{name}: no method of this name{mistakes.near(name, kinds)}")
        typer.echo("\n".join(_described(name, *kinds[name])))
        return
    for title, kinds in listed.items():
        table = Table("method", "settings", title=title, title_justify="left")
        for tag, kind in kinds.items():
            fields = (known.alias or field for field, known in kind.model_fields.items())
            table.add_row(tag, ", ".join(field for field in fields if field not in ("method", "by")))
        screen.print(table)


def _described(name: str, section: str, kind: type[BaseModel]) -> Iterator[str]:
    """Yields the lines on one method: what it is and whose, an example, and its settings."""
    from spunge.recipe import mistakes

    yield from (inspect.getdoc(sys.modules[kind.__module__]) or "").splitlines()
    key = mistakes.discriminator(kind)
    fields = {field.alias or label: field for label, field in kind.model_fields.items() if label != key}
    required = "".join(f", {label}: …" for label, field in fields.items() if field.is_required())
    example = f"{{{key}: {name}{required}}}"
    yield from ("", f"{section}: {example if section != 'evaluate' else f'[{example}]'}", "")
    for label, field in fields.items():
        default = "must be given" if field.is_required() else _spelt(field.get_default(call_default_factory=True))
        choices = [json.dumps(choice) for choice in get_args(field.annotation) if isinstance(choice, str | bool)]
        bounds = ", ".join([*choices, *(f"{sign} {value:g}" for sign, value in _bounds(field.metadata))])
        yield f"{label}: {default}" + (f"   ({bounds})" if bounds else "")
        yield textwrap.fill(field.description or "", 76, initial_indent="    ", subsequent_indent="    ")


def _spelt(default: Any) -> str:
    from spunge.settings import Settings

    return default.model_dump_json() if isinstance(default, Settings) else json.dumps(default, default=str)


def _bounds(metadata: Sequence[Any]) -> Iterator[tuple[str, float]]:
    for attribute, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤")):
        yield from ((sign, getattr(rule, attribute)) for rule in metadata if hasattr(rule, attribute))


def schema() -> None:
    """Prints the JSON Schema of a recipe, for editors."""
    from spunge.recipe import schema

    typer.echo(json.dumps(schema.json_schema(), indent=1, ensure_ascii=False))

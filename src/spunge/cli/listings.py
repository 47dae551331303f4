"""Commands that list what there is: recipes, methods, and the schema of a recipe."""

from __future__ import annotations

import json

import typer
from rich.table import Table

from spunge.cli.options import screen


def recipes() -> None:
    """Lists the recipes that ship with Spunge."""
    from spunge.recipe import reading, shipped

    table = Table("recipe", "method", "what it asks")
    for name in shipped.recipes():
        recipe = reading.read(name)
        table.add_row(name, getattr(recipe.unlearn, "method", ""), recipe.description or "")
    screen.print(table)


def methods() -> None:
    """Lists every method with its settings and their defaults."""
    from spunge.recipe import schema

    for title, kinds in schema.methods().items():
        table = Table("method", "settings", title=title, title_justify="left")
        for name, kind in kinds.items():
            fields = (known.alias or field for field, known in kind.model_fields.items())
            table.add_row(name, ", ".join(field for field in fields if field not in ("method", "by")))
        screen.print(table)


def schema() -> None:
    """Prints the JSON Schema of a recipe, for editors."""
    from spunge.recipe import schema

    typer.echo(json.dumps(schema.json_schema(), indent=1, ensure_ascii=False))

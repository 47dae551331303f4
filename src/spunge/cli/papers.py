"""Commands that take a run's tables and figures out of its report, for a paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from spunge.cli.options import screen, write_line
from spunge.errors import RecipeError

T = TypeVar("T")
Run = Annotated[Path, typer.Argument(help="A run's directory, of an audit too.")]
_ENDINGS = {"latex": "tex", "csv": "csv", "markdown": "md"}
_FORMS = ("svg", "png", "pdf")


def tables(
    run: Run,
    names: Annotated[list[str] | None, typer.Argument(help="Which; default: all.", show_default=False)] = None,
    latex: Annotated[bool, typer.Option("--latex", help="For the booktabs package.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="With the ends of intervals in columns of their own.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A directory for a file each.")] = None,
) -> None:
    """Prints a run's tables as Markdown, LaTeX or CSV, or writes a file each."""
    import spunge

    if latex and csv:
        raise RecipeError("--latex and --csv exclude each other")
    form = "latex" if latex else "csv" if csv else "markdown"
    chosen = _chosen(spunge.open(run).tables, names)
    written = {name: getattr(table, f"to_{form}")() for name, table in chosen.items()}
    if out is None:
        comment = {"latex": "% ", "csv": "# ", "markdown": "## "}[form]
        typer.echo("\n".join(f"{comment}{name}: {chosen[name].title}\n\n{text}" for name, text in written.items()))
        return
    out.mkdir(parents=True, exist_ok=True)
    for name, text in written.items():
        (out / f"{name}.{_ENDINGS[form]}").write_text(text, encoding="utf-8", newline="")
    write_line(screen, f"{out}: {len(written)} tables: {', '.join(written)}")


def figures(
    run: Run,
    names: Annotated[list[str] | None, typer.Argument(help="Which; default: all.", show_default=False)] = None,
    form: Annotated[str, typer.Option("--as", help="svg, png or pdf.")] = "svg",
    dpi: Annotated[int, typer.Option("--dpi", min=20, max=2400, help="Dots an inch, of a png.")] = 200,
    out: Annotated[Path, typer.Option("--out", "-o", help="The directory.")] = Path("figures"),
) -> None:
    """Draws a run's figures into files, on white."""
    import spunge
    from spunge import report

    if form not in _FORMS:
        raise RecipeError(f"--as {form}: use one of {', '.join(_FORMS)}")
    opened = spunge.open(run)
    chosen = _chosen({figure.key: figure for figure in report.draw(opened.run, opened.results)}, names)
    out.mkdir(parents=True, exist_ok=True)
    for name, figure in chosen.items():
        figure.save(out / f"{name}.{form}", dpi=dpi)
    write_line(screen, f"{out}: {len(chosen)} figures: {', '.join(chosen)}")


def _chosen(there: Mapping[str, T], names: Sequence[str] | None) -> Mapping[str, T]:
    for name in names or ():
        if name not in there:
            raise RecipeError(f"{name}: the report has none of this name; there are {', '.join(there) or 'none'}")
    return {name: there[name] for name in names} if names else there

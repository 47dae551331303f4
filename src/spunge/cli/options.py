"""What the commands share: the two consoles, options that several take, and what the words after them mean."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from spunge.errors import RecipeError

if TYPE_CHECKING:
    from spunge.cli.progress import Display
    from spunge.rows.sources import Source

# Names are the user's: `[red]` and `:a:` in them are text.
screen = Console(highlight=False, markup=False, emoji=False)
aside = Console(stderr=True, highlight=False, markup=False, emoji=False)


def _recipes(incomplete: str) -> list[str]:
    """What a shell offers where a recipe is wanted, beside the files."""
    from spunge.recipe import shipped

    return [name for name in shipped.recipes() if name.startswith(incomplete)]


def methods_of(*sections: str) -> Callable[[str], list[str]]:
    """Returns what a shell offers where a method of some sections, or of any, is wanted."""

    def offered(incomplete: str) -> list[str]:
        from spunge.recipe import schema

        listed = schema.methods()
        return [name for section in sections or listed for name in listed[section] if name.startswith(incomplete)]

    return offered


Recipe = Annotated[
    str,
    typer.Argument(help="A YAML file, or the name of a recipe that ships with Spunge.", autocompletion=_recipes),
]
Suite = Annotated[str, typer.Option("--suite", help="A recipe, or a YAML list of evaluators.", autocompletion=_recipes)]
Out = Annotated[Path, typer.Option("--out", "-o", help="The runs root; an existing one is continued.")]
NewOut = Annotated[Path, typer.Option("--out", "-o", help="The new directory.")]
Model = Annotated[str, typer.Option("--model", help="A model directory or hub id.")]
Device = Annotated[str, typer.Option("--device", help="A torch device; auto takes a GPU if there is one.")]
Dtype = Annotated[str | None, typer.Option("--dtype", help="What to compute in; default: the checkpoint's own.")]
Rank = Annotated[int, typer.Option("--rank", min=1, help="Of an adapter that is not exact.")]
Seed = Annotated[int, typer.Option("--seed", help="The seed of everything drawn.")]
Words = Annotated[list[str] | None, typer.Argument(help="Settings: key=value …", show_default=False)]
Sets = Annotated[
    list[str] | None, typer.Option("--set", help="key=value, as the words after the recipe; may be repeated.")
]
Columns = Annotated[
    list[str] | None,
    typer.Option("--columns", help="text=body: Spunge's name for a column, and the file's own; may be repeated."),
]
OfflineRoot = Annotated[
    Path | None,
    typer.Option("--offline-root", help="A folder that holds every model and data set of the hub; nothing is fetched."),
]
AllowCode = Annotated[
    bool,
    typer.Option("--allow-code", help="Run code that the recipe names: read it first, it may do all that you may."),
]
Track = Annotated[
    str | None, typer.Option("--track", help="Send every step's figures to tensorboard, trackio or wandb.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON line an event; docs/architecture.md lists them.")]
DTYPES = ("auto", "float32", "bfloat16", "float16")


_MARKS = {"good": ("✓", "green"), "bad": ("✗", "red"), "unsure": ("?", "yellow")}


def show_report(report: Path) -> None:
    """Prints the verdict of a written report, its numbers and a line a rival."""
    from spunge import report as reports

    for line in reports.ending(report):
        if line.status:
            mark, colour = _MARKS[line.status]
            screen.print(f"  {mark} ", style=colour, end="")
            write_line(screen, line.text, indent=4, at=4)
        else:
            write_line(screen, line.text)


def write_line(console: Console, line: str, *, indent: int = 0, at: int = 0) -> None:
    """Prints a line; on a terminal one that is too long goes on under itself, elsewhere it stays whole.

    Nothing is cut, and a log or a pipe has one line for one thing to find it by.

    Args:
        console: Where to.
        line: The line.
        indent: How far what goes on below is moved in.
        at: How many columns of the first line are taken already.
    """
    if console.is_terminal and len(line) + at > console.width:
        filled = textwrap.fill(
            " " * at + line, console.width, subsequent_indent=" " * indent, break_on_hyphens=False,
            break_long_words=False,
        )  # fmt: skip
        line = filled[at:]
    console.print(line, soft_wrap=True)


def split_words(words: Sequence[str] | None) -> tuple[dict[str, Any], list[str]]:
    """Tells settings (key=value) from other words; `./a=b` is a path."""
    from spunge.recipe import overrides

    settings = [word for word in words or [] if overrides.is_setting(word)]
    others = [word for word in words or [] if not overrides.is_setting(word)]
    return overrides.parse(settings), others


def settings_of(words: Sequence[str] | None) -> dict[str, Any]:
    """Returns the settings that words are, all of which must be key=value."""
    settings, others = split_words(words)
    if others:
        raise RecipeError(f"{others[0]!r} is not a setting: write key=value")
    return settings


def sources_of(paths: Sequence[str], columns: Sequence[str] | None) -> list[Source]:
    """Returns one source a path, with Spunge's names for its columns."""
    from spunge.rows.sources import Source

    renamed = _columns(columns)
    return [Source(path=path, columns=renamed) for path in paths]


def topics_of(words: Sequence[str], columns: Sequence[str] | None) -> dict[str, list[Source]]:
    """Returns the sources of every topic of a forget set, each word being `[name=]FILE`; "" where none has a name."""
    topics: dict[str, list[Source]] = {}
    for word in words:
        name, path = _topic(word)
        topics.setdefault(name, []).extend(sources_of([path], columns))
    if "" in topics and len(topics) > 1:
        named = next(name for name in topics if name)
        raise RecipeError(f"--forget {topics[''][0].path}: give it a topic too, as {named}=… has one, or name none")
    return topics


def retained_of(paths: Sequence[str], columns: Sequence[str] | None) -> list[Source]:
    """Returns the sources of a retain set; it may well have other columns than the forget set."""
    from spunge.rows.sources import Source, column_names

    return [
        source if set(source.columns.values()) <= set(column_names(source.path)) else Source(path=source.path)
        for source in sources_of(paths, columns)
    ]


def _columns(words: Sequence[str] | None) -> dict[str, str]:
    """Returns Spunge's name → the file's own, where they differ, of `text=body` words."""
    names = {}
    for word in words or []:
        name, _, column = word.partition("=")
        if not (name and column):
            raise RecipeError(f"--columns {word!r}: write Spunge's name and the file's own, such as text=body")
        names[name] = column
    return {name: column for name, column in names.items() if name != column}


def _topic(word: str) -> tuple[str, str]:
    """Splits `name=FILE`, where the name may be missing; a path that holds `=` is given as `./a=b`."""
    name, equals, path = word.partition("=")
    if not equals or "/" in name or name.startswith("."):
        return "", word
    if not path:
        raise RecipeError(f"--forget {word!r}: no file after the name")
    return name, path


def check_dtype(dtype: str | None) -> str | None:
    """Returns what `--dtype` says, if there is such a type."""
    if dtype is not None and dtype not in DTYPES:
        raise RecipeError(f"--dtype {dtype}: use one of {', '.join(DTYPES)}")
    return dtype


@contextmanager
def watch(quiet: bool, as_json: bool = False) -> Iterator[Display]:
    """Shows how far a command is, in the way that fits its terminal and options."""
    from spunge.cli import progress

    with progress.watch(aside, sys.stdout, quiet=quiet, as_json=as_json) as display:
        yield display

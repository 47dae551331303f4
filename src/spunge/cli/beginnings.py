"""Commands for who begins: a first recipe for a data file, and a talk with what came of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from spunge.cli.options import Device, aside, screen, write_line
from spunge.errors import RecipeError


def init(
    data: Annotated[str, typer.Argument(help="What must go: a file, a directory of files, or a hub id.")],
    model: Annotated[str, typer.Option("--model", help="The base model's directory or hub id.")],
    retain: Annotated[
        str | None, typer.Option("--retain", help="What must stay; without it the damage is unknown.")
    ] = None,
    by: Annotated[str | None, typer.Option("--by", help="The column to split by; default: the likeliest.")] = None,
    questions: Annotated[
        str | None, typer.Option("--questions", help="About what must go: rows with question, choices and answer.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Of the experiment; default: as --out, or as the data file.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The recipe; default: NAME.yaml.")] = None,
) -> None:
    """Looks at a data file and writes a first recipe for it, with a comment on every choice."""
    from spunge.recipe import drafting, reading

    name = name or drafting.name_of(str(out or data))
    file = out or Path(f"{name}.yaml")
    forget = drafting.look(data, by=by)
    asked = None if questions is None else drafting.questions(questions, forget.attribute)
    text = drafting.draft(name, model, forget, None if retain is None else drafting.look(retain), asked)
    reading.parse(text, name=str(file))  # what could not be read is not written
    try:
        with file.open("x", encoding="utf-8") as written:
            written.write(text)
    except FileExistsError as error:
        raise RecipeError(f"{file}: there already; remove it, or name another with --out") from error
    split = f"split by {forget.attribute} ({len(forget.counts)} values)" if forget.attribute else "split by clusters"
    write_line(screen, f"{file}: {forget.rows} rows to forget, {split}; read it, then: spunge plan {file}")


def chat(
    run: Annotated[str, typer.Argument(help="A run's directory, or a part of it as RUN:subset:women.")],
    variant: Annotated[
        str | None, typer.Option("--variant", help="Of the run: merged (the default), joint, subset:women, …")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Which of the run's seeds; default: its first.")] = None,
    system: Annotated[str | None, typer.Option("--system", help="What both are told before each prompt.")] = None,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Where an answer ends at the latest.")] = 100,
    device: Device = "auto",
) -> None:
    """Answers each line of standard input twice: as the base model, and as the unlearned one; nothing is remembered."""
    from spunge.cli.steps import part_of
    from spunge.run.chat import Chat
    from spunge.run.compute import choose_device
    from spunge.variants import label_of
    from spunge.weights.language_model import Resident

    part = part_of(run, variant, seed)
    talk = Chat(part, Resident(choose_device(device)), system, tokens)
    names = ("base model", label_of(part.variant))
    for prompt in _prompts():
        for name, answer in zip(names, talk.answers(prompt), strict=True):
            screen.print(f"{name}: ", style="bold", end="")
            screen.print(answer, soft_wrap=True)
        screen.print()


def _prompts() -> Iterator[str]:
    """Yields what the user types, line by line; from a pipe each is shown, lest answers stand without questions."""
    typed = sys.stdin.isatty()
    if typed:
        aside.print("a prompt a line; Ctrl-D ends")
    while True:
        try:
            line = input("> " if typed else "")
        except EOFError:
            return
        if line.strip():
            if not typed:
                screen.print(f"> {line}", soft_wrap=True)
            yield line

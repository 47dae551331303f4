"""What a search's end offers on a terminal: another point, a checkpoint, a talk, an attack, a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from spunge.cli.options import aside, screen, write_line
from spunge.errors import SpungeError

if TYPE_CHECKING:
    from spunge.auto.session import Session

_CHOICES = {
    "p": "take another point of the front",
    "e": "export it as a checkpoint, with its card and reproduce.json",
    "c": "chat with it beside the base model",
    "a": "attack it",
    "r": "write a recipe for `spunge run`",
    "q": "quit",
}


def offer(session: Session, result: dict[str, Any], device: str = "auto") -> None:
    """Asks what to do with the choice until the user has had enough; a mistake is told and asked again.

    Ctrl-C and Ctrl-D leave what was begun and, where nothing was, the menu: all that was searched is written by then.
    """
    taken: int | None = None
    while True:
        shown = "the choice" if taken is None else f"point {taken} of the front"
        screen.print(f"\n{shown}:")
        for letter, what in _CHOICES.items():
            screen.print(f"  {letter}  {what}")
        try:
            wish = typer.prompt("what now?", default="q").strip().lower()[:1]
        except typer.Abort:
            return
        try:
            if wish == "q":
                return
            if wish == "p":
                wanted = typer.prompt("which row of the front's table", type=int)
                session.point(result, wanted)
                taken = wanted
            elif wish == "e":
                out = Path(typer.prompt("where to", default=str(session.out / "model")))
                write_line(
                    screen, f"{session.export(result, taken, out)}: a checkpoint that AutoModelForCausalLM loads"
                )
            elif wish == "c":
                _chat(session, result, taken, device)
            elif wish == "a":
                _attack(session, result, taken)
            elif wish == "r":
                out = Path(typer.prompt("where to", default=str(session.out / "recipe.yaml")))
                chosen, _ = session.point(result, taken)
                from spunge.files import replace_text

                replace_text(out, session.recipe(chosen))
                write_line(screen, f"spunge run {out}")
            else:
                screen.print("one of the letters, please")
        except (typer.Abort, KeyboardInterrupt):
            screen.print("")
        except (SpungeError, OSError) as error:
            aside.print(f"spunge: {error}", soft_wrap=True)


def _chat(session: Session, result: dict[str, Any], taken: int | None, device: str) -> None:
    talk = session.chat(result, taken, device)
    screen.print("say something; an empty line ends it")
    while text := typer.prompt("you", default="", show_default=False):
        base, unlearned = talk.answers(text)
        write_line(screen, f"base:      {base}")
        write_line(screen, f"unlearned: {unlearned}")


def _attack(session: Session, result: dict[str, Any], taken: int | None) -> None:
    from spunge.auto.telling import amount, unit

    name = typer.prompt("which attack", default="relearning")
    kind = session.asking.kind
    before, after = session.attacked(result, taken, name)
    write_line(screen, f"forgotten before {amount(before)}, after {amount(after)} {unit(kind)}")

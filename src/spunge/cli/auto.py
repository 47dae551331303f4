"""`spunge auto` and `spunge reproduce`: the questions, the progress and the menu around a search."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table as Grid

from spunge.cli.options import (
    AllowCode,
    Columns,
    Device,
    Dtype,
    Quiet,
    Seed,
    aside,
    check_dtype,
    retained_of,
    screen,
    sources_of,
    watch,
    write_line,
)
from spunge.errors import RecipeError, SpungeError
from spunge.files import format_duration

if TYPE_CHECKING:
    from spunge.auto.search import Event
    from spunge.auto.session import Session
    from spunge.report.tables import Table


NOTHING_WORKED = 1
"""What the command ends with where it found nothing; a mistake ends with 2."""


def auto(
    model: Annotated[str, typer.Argument(help="The base model: a directory or hub id.")],
    forget: Annotated[list[str], typer.Option("--forget", help="Texts or questions of what must go; may be repeated.")],
    retain: Annotated[list[str], typer.Option("--retain", help="Texts or questions of what must stay.")],
    by: Annotated[
        str | None, typer.Option("--by", help="The column to split by, or cluster; default: one that fits.")
    ] = None,
    damage: Annotated[
        float, typer.Option("--damage", help="What it may cost: nats per token on texts to keep.")
    ] = 0.03,
    minutes: Annotated[float | None, typer.Option("--minutes", help="How long it may take; default: 60.")] = None,
    trials: Annotated[
        int | None, typer.Option("--trials", help="How many trials, of each of joint and merged.")
    ] = None,
    methods: Annotated[
        str | None, typer.Option("--methods", help="With commas; one from outside is package.module:Class.")
    ] = None,
    against: Annotated[
        str | None, typer.Option("--against", help="An attack to withstand, such as relearning.")
    ] = None,
    sampler: Annotated[str, typer.Option("--sampler", help="tpe, or random to compare with.")] = "tpe",
    out: Annotated[Path, typer.Option("--out", "-o", help="The search's directory; one that is there goes on.")] = Path(
        "auto"
    ),
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing, and export the choice.")] = False,
    columns: Columns = None,
    allow_code: AllowCode = False,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = None,
    quiet: Quiet = False,
) -> None:
    """Finds what makes a model forget, and judges the best on rows that nothing was tuned on."""
    if sampler not in ("tpe", "random"):
        raise RecipeError(f"--sampler {sampler}: use tpe or random")
    if minutes is not None and trials is not None:
        raise RecipeError("--minutes and --trials: give one of the two")
    from spunge.auto import session as sessions
    from spunge.auto.telling import verdict
    from spunge.auto.wish import METHODS, Wish
    from spunge.run.compute import Compute

    wish = Wish(
        model, tuple(sources_of(forget, columns)), tuple(retained_of(retain, columns)), by, damage, minutes, trials,
        tuple(name.strip() for name in methods.split(",")) if methods else METHODS,
        against, sampler, seed, check_dtype(dtype),
    )  # fmt: skip
    asks = not (yes or quiet) and sys.stdin.isatty() and screen.is_terminal
    told = (lambda line: None) if quiet else (lambda line: aside.print(f"{line} …", soft_wrap=True))
    executor_of = sessions.executor_here(Compute(device))
    session = sessions.begin(wish, out, executor_of, allow_code=allow_code, told=told)
    if not quiet:
        for line in session.lines:
            write_line(screen, line)
        if asks and not typer.confirm("Go on?", default=True):
            raise typer.Exit
    result = _searched(session, quiet=quiet)
    if not quiet:
        _show(session, result)
    elif not result["worked"]:
        aside.print(verdict(result, session.asking.kind, damage)[0], soft_wrap=True)
    if asks:
        from spunge.cli.menu import offer

        offer(session, result, device)
    elif result["worked"]:
        _export(session, result, quiet=quiet)
    if not result["worked"]:
        raise typer.Exit(NOTHING_WORKED)


def _searched(session: Session, *, quiet: bool) -> dict[str, Any]:
    """Runs the search; where it is stopped, says what the best was and how to go on."""
    last: list[Event] = []

    def listen(event: Event) -> None:
        last[:] = [event]
        if not quiet:
            aside.print(_line(session, event), soft_wrap=True)

    try:
        return session.run(listen)
    except KeyboardInterrupt:
        if not quiet:
            best = session.search.at_top()
            if best:
                from spunge.auto.telling import forgets, unit

                kind = session.asking.kind
                told = f"{best[0].told} forgets {forgets(best[0])} {unit(kind)} on the rows to tune on"
                aside.print(f"the best so far, kept in {session.out}: {told}", soft_wrap=True)
            else:
                aside.print("no trial had ended", soft_wrap=True)
        raise


def _line(session: Session, event: Event) -> str:
    from spunge.auto.search import readings_of
    from spunge.auto.telling import forgets

    result = event.result
    within = [one for one in readings_of(result) if one.share == 1.0]
    best = max(within, key=lambda one: one.gone, default=None)
    if result["failed"]:
        came = f"failed: {result['failed']}"
    else:
        came = f"forgets {forgets(best)}" if best else "could not be read"
    of = f" of {event.whole}" if event.whole else ""
    left = "" if event.left is None else f"; {format_duration(event.left)} left"
    top = f"; best {forgets(event.best)} ({event.best.told})" if event.best else ""
    trial = f"{event.arm} {event.setting.number}, {event.rung.rows} rows, {event.setting.told}"
    return f"{event.done}{of}: {trial}: {came} in {format_duration(result['seconds'])}{top}{left}"


def _show(session: Session, result: dict[str, Any]) -> None:
    from spunge.auto import telling

    kind = session.asking.kind
    screen.print(grid(telling.front_table(result, kind)))
    screen.print(grid(telling.judged_table(result, kind)))
    for line in telling.verdict(result, kind, session.wish.damage):
        write_line(screen, line)
    write_line(screen, telling.times(result))
    write_line(screen, f"page: {session.out / 'index.html'}")


def grid(table: Table) -> Grid:
    """Returns a table of the report for the terminal."""
    shown = Grid(*table.header, title=table.title, title_justify="left")
    for row in table.rows:
        shown.add_row(*row)
    return shown


def _export(session: Session, result: dict[str, Any], *, quiet: bool) -> None:
    from spunge.auto.reproducing import MODEL
    from spunge.auto.session import REPRODUCE

    if (session.out / MODEL).exists():
        if not session.holds(result):
            raise SpungeError(
                f"{session.out / MODEL}: is not known to be the choice above: move it away, and the same command "
                "writes the choice"
            )
        if not quiet:
            write_line(screen, f"{session.out / MODEL}: is there already")
        return
    written = session.export(result)
    if not quiet:
        write_line(screen, f"{written}: a checkpoint that AutoModelForCausalLM loads, with its card")
        write_line(screen, f"the same again: spunge reproduce {session.out / REPRODUCE}")


def reproduce(
    file: Annotated[Path, typer.Argument(help="The reproduce.json that `spunge auto` left.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The new directory.")] = Path("reproduced"),
    model: Annotated[str | None, typer.Option("--model", help="Where the base model lies now.")] = None,
    allow_code: AllowCode = False,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Makes a model that `spunge auto` found once more from its inputs, and says whether it is the same."""
    from spunge.auto import reproducing
    from spunge.auto.reproducing import MODEL
    from spunge.auto.session import executor_here
    from spunge.run.compute import Compute

    with watch(quiet) as display:
        made = reproducing.reproduce(
            file, out, executor_here(Compute(device), display.step), model=model, allow_code=allow_code
        )
    if made.same:
        if not quiet:
            write_line(screen, f"{out / MODEL}: the same model, bit for bit")
            for line in made.differing:
                write_line(screen, f"  though {line}")
        return
    raise SpungeError(f"{out / MODEL}: not the same model: {'; '.join(made.differing)}")

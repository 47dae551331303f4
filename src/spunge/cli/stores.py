"""Commands that look after the store: list it, verify it, and remove what no run needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from spunge.cli.options import AllowCode, Out, aside, screen
from spunge.errors import redacted

if TYPE_CHECKING:
    from spunge.run.store import Store

app = typer.Typer(help="Looks after the artifacts that all runs under a runs root share.", no_args_is_help=True)


def _store(out: Path) -> Store:
    """Opens the store of a runs root; one that is not there was meant to be another, and nothing is made."""
    from spunge.errors import ArtifactError
    from spunge.run.store import Store

    if not (out / "store").is_dir():
        raise ArtifactError(f"{out}: no store in it: --out names the runs root, which holds runs and their store")
    return Store(out / "store")


@app.command("ls")
def list_store(out: Out = Path("runs")) -> None:
    """Lists every artifact: its stage, key and size, when it was made, in how long, and for which runs."""
    from spunge.errors import ArtifactError
    from spunge.files import format_bytes, size_of
    from spunge.run.foretell import plan as planning

    store = _store(out)
    runs: Mapping[str, Sequence[str]] = {}
    try:
        runs = planning.needed(out)
    except ArtifactError as error:
        aside.print(redacted(f"spunge: warning: {error}"), soft_wrap=True)
    table = Table("stage", "key", "size", "made", "seconds", "runs")
    total = count = 0
    for artifact in store.contents():
        used, made = size_of(artifact.path), datetime.fromtimestamp(artifact.path.stat().st_mtime)
        shown = (format_bytes(used), f"{made:%Y-%m-%d %H:%M}", str(artifact.manifest.get("seconds", "")))
        table.add_row(
            artifact.path.parent.name, artifact.path.name, *shown, ", ".join(runs.get(artifact.path.name, []))
        )
        total, count = total + used, count + 1
    screen.print(table)
    screen.print(f"{count} artifacts, {format_bytes(total)}")


@app.command()
def verify(out: Out = Path("runs")) -> None:
    """Reads every artifact and compares it with the digests in its manifest; changes nothing."""
    from spunge.errors import ArtifactError

    store = _store(out)
    damaged = list(store.damaged())
    for path, what in damaged:
        screen.print(f"{path}: {what} is damaged", soft_wrap=True)
    if damaged:
        raise ArtifactError(f"{len(damaged)} damaged; the next run that needs one sets it aside and makes it again")
    screen.print(f"{sum(1 for _ in store.contents())} artifacts, all as they were published")


@app.command()
def gc(
    out: Out = Path("runs"),
    delete: Annotated[bool, typer.Option("--delete", help="Remove it; without this, only say what would go.")] = False,
    allow_code: AllowCode = False,
) -> None:
    """Says what no run under the runs root refers to, and what broken attempts left; with --delete, removes it."""
    from spunge.files import format_bytes, size_of
    from spunge.run.foretell import plan as planning

    store = _store(out)
    total = count = 0
    with store.held(alone=True) if delete else nullcontext():
        for path in store.superfluous(planning.needed(out, allow_code=allow_code)):
            used = size_of(path)
            total, count = total + used, count + 1
            screen.print(f"{format_bytes(used):>9}  {path}", soft_wrap=True)
            if delete:
                store.delete(path)
    screen.print(f"{count} {'removed' if delete else 'to remove with --delete'}, {format_bytes(total)}")

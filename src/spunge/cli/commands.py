"""The command line: its menu, how it ends, and the commands that take a recipe or a run.

Heavy imports wait until a command needs them.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import signal
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spunge.cli import auto, beginnings, listings, papers, steps, stores
from spunge.cli.options import (
    AllowCode,
    AsJson,
    Device,
    Dtype,
    OfflineRoot,
    Out,
    Quiet,
    Recipe,
    Sets,
    Track,
    Words,
    aside,
    check_dtype,
    screen,
    show_report,
    watch,
    write_line,
)
from spunge.cli.surroundings import prepare
from spunge.cli.tracking import tracked
from spunge.errors import RecipeError, SpungeError, redacted, shortened

if TYPE_CHECKING:
    from spunge.recipe.schema import Experiment

app = typer.Typer(
    name="spunge",
    help="Make a language model forget, attribute by attribute, and show what went and what stayed.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if not wanted:
        return
    from spunge.run.environment import environment

    versions = {name: version for name, version in environment("").items() if version}
    screen.print("\n".join(f"{name} {versions[name]}" for name in sorted(versions, key=lambda name: name != "spunge")))
    raise typer.Exit


@app.callback()
def begin(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show versions, and the commit.")
    ] = False,
) -> None:
    """Takes what is said before a command."""


def main() -> None:
    """Runs a command; every mistake of the user's or the world's ends in one clear line and exit code 2."""
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # its retries would come before the one line that says why
    warnings.filterwarnings("ignore")  # of libraries, about each other
    warnings.filterwarnings("default", module=r"spunge\.")
    warnings.showwarning = _warn
    screen.quiet = aside.quiet = os.environ.get("RANK", "0") != "0"  # of torchrun's processes the first one speaks
    for sent in (signal.SIGTERM, signal.SIGHUP):  # a lost terminal as well, unless nohup said to go on without
        if signal.getsignal(sent) is not signal.SIG_IGN:
            signal.signal(sent, lambda number, _: sys.exit(128 + number))  # leave by the way that cleans up
    try:
        prepare(sys.argv[1:])
        _greet(sys.argv[1:])
        code = app(standalone_mode=False)
        if code == 130:  # what typer makes of Ctrl-C inside a command
            raise KeyboardInterrupt
    except SpungeError as error:
        code = _refuse(str(error))
    except typer.TyperException as error:
        setting = getattr(error, "option_name", "").lstrip("-")
        hint = f" (a setting has no dashes: {setting}=…)" if "." in setting else ""
        code = _refuse(error.format_message() + hint)
    except MemoryError as error:
        code = _refuse(f"out of memory ({error or 'nothing more to be had'}): see what `spunge plan` says it takes")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        code = _refuse(f"{where}{error.strerror or error}")
    except (KeyboardInterrupt, typer.Abort):
        code = _refuse("interrupted: finished stages are kept; the same command continues")
    sys.exit(code or 0)


_LONG = {
    "demo", "auto", "reproduce", "run", "plan", "unlearn", "merge", "export", "evaluate", "audit", "finetune", "search",
    "train-classifier", "report", "compare", "figures", "chat",
}  # fmt: skip
"""Commands that load libraries, for seconds, before they can say anything of their own."""


def _greet(words: Sequence[str]) -> None:
    """Says at once that a command has begun; elsewhere than on a terminal an error stays one line."""
    if words and words[0] in _LONG and aside.is_terminal and not {"--quiet", "--json", "--help", "-h"} & set(words):
        named = words[1] if len(words) > 1 and not words[1].startswith("-") else ""
        aside.print(f"spunge {words[0]} {named}".rstrip() + " …", soft_wrap=True)


def _warn(message: Warning | str, *where: Any, **more: Any) -> None:
    aside.print(redacted(f"spunge: warning: {message}"), soft_wrap=True)


def _warn_of(cautions: Sequence[str]) -> None:
    for caution in cautions:
        _warn(caution)


def _refuse(message: str) -> int:
    shown = message if message.startswith("Usage:") else f"spunge: {shortened(message)}"
    aside.print(redacted(shown), soft_wrap=True)
    return 2


def demo(
    scenario: Annotated[str | None, typer.Argument(help="knowledge or toxicity; both when none is named.")] = None,
    out: Out = Path("runs"),
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Runs the embedded experiments: a small fictional world, on a CPU, offline."""
    scenarios = ("knowledge", "toxicity")
    if scenario is not None and scenario not in scenarios:
        raise RecipeError(f"{scenario!r} is no scenario of the demo: knowledge or toxicity")
    jobs = min(2, os.cpu_count() or 1)  # on models this small one thread a process beats several threads in one
    for name in [scenario] if scenario else scenarios:
        run(f"lab-{name}", out=out, jobs=jobs, quiet=quiet, as_json=as_json)


def run(
    recipe: Recipe,
    words: Words = None,
    sets: Sets = None,
    out: Out = Path("runs"),
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Processes to run independent tasks in.")] = 1,
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, help="Run seeds 0 … N−1.")] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option("--sweep", help="key=v1,v2,…: merge.* is picked on a part of the items; else a run a value."),
    ] = None,
    executor: Annotated[str, typer.Option("--executor", help="local, or ray: the hosts of a cluster.")] = "local",
    address: Annotated[str, typer.Option("--address", help="The Ray cluster's host:port.")] = "auto",
    device: Device = "auto",
    dtype: Dtype = None,
    offline_root: OfflineRoot = None,
    allow_code: AllowCode = False,
    check: Annotated[bool, typer.Option("--check", help="Do what `spunge plan` does, and run nothing.")] = False,
    track: Track = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Splits, unlearns, merges, evaluates and reports; what is there already is not computed again."""
    words = [*(words or []), *(sets or [])]
    if executor not in ("local", "ray"):
        raise RecipeError(f"--executor {executor}: use local or ray")
    if sweep:
        _sweep(
            recipe, words, sweep, out=out, jobs=jobs, seeds=seeds, executor=executor, address=address, device=device,
            dtype=dtype, offline_root=offline_root, allow_code=allow_code, check=check, track=track, quiet=quiet,
            as_json=as_json,
        )  # fmt: skip
        return
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RecipeError("torchrun is for one job on several devices, unlearn or finetune: run a recipe without it")
    experiment = _read(recipe, words, seeds, offline_root, allow_code=allow_code)
    if check:
        plan(recipe, words, out=out, seeds=seeds, offline_root=offline_root, allow_code=allow_code, device=device)
        return
    from spunge.report import summary
    from spunge.run import pipeline
    from spunge.run.compute import Compute

    compute, typed = Compute(device, check_dtype(dtype), jobs, executor, address), shlex.join(["spunge", *sys.argv[1:]])

    def listen(kind: str, content: Mapping[str, Any], /) -> None:
        if kind == "warned" and not as_json:
            _warn_of(content["warnings"])
        display.event(kind, content)

    with watch(quiet, as_json) as display, tracked(display.step, track, experiment.name) as progress:
        directory = pipeline.run(
            experiment, out=out, compute=compute, progress=progress, listener=listen, command=typed
        )
        page = directory / "report" / "index.html"
        display.event("done", {"run": str(directory), "report": str(page), "verdict": summary(page.parent)})
    if not (quiet or as_json):
        _show(directory)


def plan(
    recipe: Recipe,
    words: Words = None,
    sets: Sets = None,
    out: Out = Path("runs"),
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, help="Plan seeds 0 … N−1.")] = None,
    offline_root: OfflineRoot = None,
    allow_code: AllowCode = False,
    device: Device = "auto",
    memory: Annotated[
        float | None, typer.Option("--memory", min=0, help="Plan for a device with so many GB, not for this one.")
    ] = None,
    every_task: Annotated[bool, typer.Option("--all", help="Say it of each task.")] = False,
) -> None:
    """Says what a run would fetch, compute or reuse and why, how long that takes, and what would not fit."""
    words = [*(words or []), *(sets or [])]
    experiment = _read(recipe, words, seeds, offline_root, allow_code=allow_code)
    from spunge.cli.plan import show_fetches, show_plan
    from spunge.recipe.fetching import to_fetch
    from spunge.run.foretell import plan as planning

    show_fetches(screen, to_fetch(experiment))
    free = None if memory is None else int(memory * 1e9)
    foretold = planning.forecast(experiment, out=out, device=device, memory=free, warn=_warn_of)
    show_plan(screen, experiment, foretold, every_task=every_task)


def report(
    run: Annotated[Path, typer.Argument(help="A run's directory.")],
    watch: Annotated[bool, typer.Option("--watch", help="Write it again and again while the run goes on.")] = False,
) -> None:
    """Writes the report of a run again, from its artifacts."""
    from spunge import report as reports

    for page in reports.watch(run) if watch else [reports.write(run)]:
        show_report(page.parent)
        write_line(screen, str(page))


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Two or more run directories.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="A new directory, or that of an earlier comparison of the same runs.")
    ] = Path("comparison"),
) -> None:
    """Writes one page over several runs, matched by item."""
    from spunge import report as reports

    page = reports.compare(runs, out)
    show_report(page.parent)
    write_line(screen, str(page))


def _sweep(recipe: str, words: Sequence[str] | None, sweep: Sequence[str], *, out: Path, **options: Any) -> None:
    """Sweeps the merge's settings within a run; any other setting retrains, so each of its values is a run of its own.

    All are on one store, so that only what a value changes is computed.
    """
    from spunge import report as reports
    from spunge.recipe import overrides

    axes, grid = [], []
    for word in sweep:
        path, values = overrides.split(word)
        if not all(values.split(",")):
            raise RecipeError(f"--sweep {word!r}: write key=v1,v2, such as merge.density=0.1,0.2")
        key = word[: -len(values) - 1]
        if path[0] == "merge":
            grid.append(f"{key}: [{values}]")
        else:
            axes.append([f"{key}={value}" for value in values.split(",")])
    words = [*(words or []), *([f"sweep={{{', '.join(grid)}}}"] if grid else [])]
    if not axes:
        run(recipe, words, out=out, **options)
        return
    allow_code = options["allow_code"]
    name = _read(recipe, words, options["seeds"], allow_code=allow_code).name
    points = {
        re.sub(r"[^A-Za-z0-9._-]+", "-", f"{name}-{'-'.join(point)}")[:100]: [*words, *point]
        for point in itertools.product(*axes)
    }
    for named, settings in points.items():  # a mistake in any of them is found before the first is run
        _read(recipe, [*settings, f"name={named}"], options["seeds"], allow_code=allow_code)
    for named, settings in points.items():
        run(recipe, [*settings, f"name={named}"], out=out, **options)
    if len(points) > 1 and not options["check"]:
        page = reports.compare([out / named for named in points], out / f"{name}-sweep", replace=True)
        if not (options["quiet"] or options["as_json"]):
            show_report(page.parent)
            write_line(screen, f"sweep: {page}")


def _read(
    recipe: str,
    words: Sequence[str] | None,
    seeds: int | None,
    offline_root: Path | None = None,
    *,
    allow_code: bool,
) -> Experiment:
    from spunge.recipe import offline, reading

    settings = [*(words or []), *([f"seeds={list(range(seeds))}"] if seeds else [])]
    read = reading.read(recipe, settings, allow_code=allow_code)
    return read if offline_root is None else offline.from_folder(read, offline_root)


def _show(directory: Path) -> None:
    manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    computed = sum(stage["status"] == "computed" for stage in manifest["stages"])
    write_line(screen, f"{computed} stages computed, {len(manifest['stages']) - computed} reused")
    show_report(directory / "report")
    write_line(screen, f"report: {directory / 'report' / 'index.html'}")


for _command in (
    demo,
    auto.auto,
    auto.reproduce,
    beginnings.init,
    run,
    plan,
    steps.unlearn,
    steps.merge,
    steps.export,
    steps.evaluate,
    steps.audit,
    steps.finetune,
    steps.search,
    steps.train_classifier,
    report,
    compare,
    beginnings.chat,
    papers.tables,
    papers.figures,
    listings.recipes,
    listings.methods,
    listings.schema,
):
    app.command()(_command)
app.command("import")(steps.import_gguf)  # a word that no function can have
app.add_typer(stores.app, name="store")

"""The command line; the only place that prints. Heavy imports wait until a command needs them."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from spunge.cli.tracking import tracked
from spunge.errors import RecipeError, SpungeError, redacted

if TYPE_CHECKING:
    from spunge.cli.progress import Display
    from spunge.recipe.schema import Experiment
    from spunge.rows.sources import Source

app = typer.Typer(
    name="spunge",
    help="Make a language model forget, attribute by attribute, and show what went and what stayed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
store = typer.Typer(help="Looks after the artifacts that all runs under a runs root share.", no_args_is_help=True)
app.add_typer(store, name="store")
# Names are the user's: `[red]` and `:a:` in them are text.
screen = Console(highlight=False, markup=False, emoji=False)
aside = Console(stderr=True, highlight=False, markup=False, emoji=False)

Out = Annotated[Path, typer.Option("--out", help="The runs root; an existing one is continued.")]
NewOut = Annotated[Path, typer.Option("--out", help="The new directory.")]
Model = Annotated[str, typer.Option("--model", help="A model directory or hub id.")]
Device = Annotated[str, typer.Option("--device", help="A torch device; auto takes a GPU if there is one.")]
Dtype = Annotated[str | None, typer.Option("--dtype", help="What to compute in; default: the checkpoint's own.")]
Seed = Annotated[int, typer.Option("--seed", help="The seed of everything drawn.")]
Words = Annotated[list[str] | None, typer.Argument(help="Settings: key=value …", show_default=False)]
TextOption = Annotated[str | None, typer.Option("--text-column", help="The column that holds the text.")]
PromptOption = Annotated[str | None, typer.Option("--prompt-column", help="The column that holds the prompt.")]
ResponseOption = Annotated[str | None, typer.Option("--response-column", help="The column that holds the response.")]
OfflineRoot = Annotated[
    Path | None,
    typer.Option("--offline-root", help="A folder that holds every model and data set of the hub; nothing is fetched."),
]
Track = Annotated[
    str | None, typer.Option("--track", help="Send every step's figures to tensorboard, trackio or wandb.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON line an event; docs/architecture.md lists them.")]
DTYPES = ("auto", "float32", "bfloat16", "float16")


def main() -> None:
    """Runs a command; every mistake of the user's or the world's ends in one clear line and exit code 2."""
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # its retries would come before the one line that says why
    warnings.filterwarnings("ignore")  # of libraries, about each other
    warnings.filterwarnings("default", module=r"spunge\.")
    warnings.showwarning = _warn
    screen.quiet = aside.quiet = os.environ.get("RANK", "0") != "0"  # of torchrun's processes the first one speaks
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave by the way that cleans up
    try:
        code = app(standalone_mode=False)
        if code == 130:  # what typer makes of Ctrl-C inside a command
            raise KeyboardInterrupt
    except SpungeError as error:
        code = _refuse(str(error))
    except typer.TyperException as error:
        code = _refuse(error.format_message())
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        code = _refuse(f"{where}{error.strerror or error}")
    except (KeyboardInterrupt, typer.Abort):
        code = _refuse("interrupted: finished stages are kept; the same command continues")
    sys.exit(code or 0)


def _warn(message: Warning | str, *where: Any, **more: Any) -> None:
    aside.print(redacted(f"spunge: warning: {message}"), soft_wrap=True)


def _refuse(message: str) -> int:
    shown = message if message.startswith("Usage:") else f"spunge: {message}"
    aside.print(redacted(shown), soft_wrap=True)
    return 2


@app.command()
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


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a recipe that ships with Spunge.")],
    words: Words = None,
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
    check: Annotated[bool, typer.Option("--check", help="Do what `spunge plan` does, and run nothing.")] = False,
    track: Track = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Splits, unlearns, merges, evaluates and reports; what is there already is not computed again."""
    if executor not in ("local", "ray"):
        raise RecipeError(f"--executor {executor}: use local or ray")
    options: dict[str, Any] = {"device": device, "jobs": jobs, "executor": executor, "address": address}
    if sweep:
        options |= {"seeds": seeds, "dtype": dtype, "offline_root": offline_root, "track": track}
        _sweep(recipe, words, sweep, out=out, check=check, quiet=quiet, as_json=as_json, **options)
        return
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RecipeError("torchrun is for one job on several devices, unlearn or finetune: run a recipe without it")
    experiment = _read(recipe, words, seeds, offline_root)
    if check:
        plan(recipe, words, out=out, seeds=seeds, offline_root=offline_root, device=device)
        return
    from spunge.run import pipeline

    with _watch(quiet, as_json) as display, tracked(display.step, track, experiment.name) as progress:
        directory = pipeline.run(
            experiment,
            out=out,
            dtype=_dtype(dtype),
            progress=progress,
            listener=display.event,
            **options,
            command=shlex.join(["spunge", *sys.argv[1:]]),
        )
        display.event("done", {"run": str(directory), "report": str(directory / "report" / "index.html")})
    if not (quiet or as_json):
        _show(directory)


@app.command()
def plan(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a recipe that ships with Spunge.")],
    words: Words = None,
    out: Out = Path("runs"),
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, help="Plan seeds 0 … N−1.")] = None,
    offline_root: OfflineRoot = None,
    device: Device = "auto",
    memory: Annotated[
        float | None, typer.Option("--memory", min=0, help="Plan for a device with so many GB, not for this one.")
    ] = None,
) -> None:
    """Says what a run would fetch, compute or reuse and why, what each task takes, and what would not fit."""
    experiment = _read(recipe, words, seeds, offline_root)
    from spunge.files import format_bytes, format_duration
    from spunge.foretell.fetching import to_fetch

    fetches = to_fetch(experiment)
    for fetch in fetches:  # before anything is: a plan itself needs the rows and the model's configuration
        size = "unknown size" if fetch.bytes is None else format_bytes(fetch.bytes)
        screen.print(
            f"to fetch: {fetch.kind} {fetch.name}, {', '.join(filter(None, (size, fetch.note)))}", soft_wrap=True
        )
    from spunge.foretell import plan as planning

    room = None if memory is None else int(memory * 1e9)
    steps = planning.forecast(experiment, out=out, device=device, memory=room)
    table = Table("stage", "name", "seed", "status", "memory", "disk", "time", "why")
    for step in steps:
        why = "; ".join(step["why"][:4]) + (" …" if len(step["why"]) > 4 else "")
        figures = ("" if step[figure] is None else format_bytes(step[figure]) for figure in ("memory", "disk"))
        time = "" if step["seconds"] is None else format_duration(step["seconds"])
        table.add_row(step["stage"], step["name"], str(step["seed"]), step["status"], *figures, time, why)
    screen.print(table)
    for subject, note in {subject: note for step in steps for subject, note in step["notes"].items()}.items():
        screen.print(f"{subject}: {note}", soft_wrap=True)
    for step in steps:
        if step["advice"]:
            screen.print(f"{step['stage']} {step['name']}: {step['advice']}", soft_wrap=True)
    for control, why in experiment.left_out.items():
        screen.print(f"not run: {control.replace('_', ' ')}: {why}", soft_wrap=True)
    computed = [step for step in steps if step["status"] == "computed"]
    if computed:
        fetched = sum(fetch.bytes or 0 for fetch in fetches)
        most = max((step["memory"] or 0 for step in computed), default=0)
        disk, seconds = (sum(step[figure] or 0 for step in computed) for figure in ("disk", "seconds"))
        screen.print(
            f"estimated in all: {format_bytes(fetched)} to fetch, {format_bytes(disk)} on the disk, "
            f"{format_bytes(most)} of memory at once, {format_duration(seconds)} one after the other",
            soft_wrap=True,
        )
    screen.print(f"{len(computed)} of {len(steps)} stages would be computed, {len(steps) - len(computed)} reused")


@app.command()
def unlearn(
    model: Model,
    forget: Annotated[list[str], typer.Option("--forget", help="[name=]FILE or hub id; several are topics.")],
    out: NewOut,
    words: Words = None,
    retain: Annotated[list[str] | None, typer.Option("--retain", help="A file or hub id.")] = None,
    method: Annotated[str, typer.Option("--method", help="`spunge methods` lists them.")] = "rmu",
    text_column: TextOption = None,
    prompt_column: PromptOption = None,
    response_column: ResponseOption = None,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = None,
    track: Track = None,
    quiet: Quiet = False,
) -> None:
    """Unlearns one forget set from a model, and writes the task vector."""
    from spunge.recipe import reading
    from spunge.unlearners import AnyUnlearner

    settings = _settings(words)
    unlearner = reading.validate(AnyUnlearner, {"method": method, **settings}, "unlearn")
    columns = {"text": text_column, "prompt": prompt_column, "response": response_column}
    topics, kept = _topics(forget, columns), _retained(retain or [], columns)
    from spunge.cli import standalone

    with _watch(quiet) as display, tracked(display.step, track, out.name) as progress:
        vector = standalone.unlearn(
            model=model, forget=topics, retain=kept,
            unlearner=unlearner, out=out, seed=seed, device=device, dtype=_dtype(dtype), progress=progress,
        )  # fmt: skip
    if not quiet:
        screen.print(f"{out}: {len(vector)} changed parameters, norm {vector.norm:.4g}")


@app.command()
def merge(
    base: Annotated[str, typer.Option("--base", help="The base model's directory or hub id.")],
    out: NewOut,
    words: Annotated[list[str] | None, typer.Argument(help="VARIANT … and settings key=value …")] = None,
    method: Annotated[str, typer.Option("--method", help="`spunge methods` lists them.")] = "ties",
    form: Annotated[str, typer.Option("--as", help="checkpoint, task-vector or adapter.")] = "checkpoint",
    only: Annotated[list[str] | None, typer.Option("--only", help="Merge this variant; may be repeated.")] = None,
    without: Annotated[list[str] | None, typer.Option("--except", help="Leave this one out; may be repeated.")] = None,
    rank: Annotated[int, typer.Option("--rank", min=1, help="Of an adapter that is not exact.")] = 64,
    seed: Seed = 0,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Merges variants of one base: task vectors, PEFT adapters or checkpoints."""
    from spunge.mergers import AnyMerger
    from spunge.recipe import reading

    settings, variants = _sorted(words)
    if not variants:
        raise RecipeError("nothing to merge: name at least one task-vector, adapter or checkpoint directory")
    merger = reading.validate(AnyMerger, {"method": method, **settings}, "merge")
    from spunge.cli import standalone

    with _watch(quiet) as display:
        diagnostics = standalone.merge(
            base=base, variants=variants, merger=merger, out=out, form=form, seed=seed, device=device,
            progress=display.step, only=only or (), without=without or (), rank=rank,
        )  # fmt: skip
    if not quiet:
        screen.print(f"{out}: {' and '.join(diagnostics['variants'])} merged by {method}")
        overall = diagnostics["overall"]
        for name, share in overall["coverage"].items():
            if share is not None:
                screen.print(f"  {name}: {share:.0%} of this removal is in the merged task vector")
        screen.print(f"  signs conflict in {overall['sign_conflict'] or 0:.1%} of the changed weights")
        if diagnostics.get("rounding") is not None:
            screen.print(
                f"  {diagnostics['rounding']:.2g} of the delta's energy is lost to the base model's number format"
            )
        if diagnostics.get("energy") is not None:
            screen.print(f"  the adapter keeps {diagnostics['energy']:.1%} of the merged delta's energy")
        for warning in diagnostics["warnings"]:
            aside.print(f"spunge: warning: {warning}", soft_wrap=True)


@app.command()
def export(
    out: NewOut,
    run: Annotated[Path | None, typer.Argument(help="A run's directory: its merged model.", show_default=False)] = None,
    model: Annotated[str | None, typer.Option("--model", help="Without a run: a model directory or hub id.")] = None,
    task_vector: Annotated[Path | None, typer.Option("--task-vector", help="Without a run: a task vector.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Which of the run's seeds; default: its first.")] = None,
    quiet: Quiet = False,
) -> None:
    """Writes a run's merged model, or model + task vector, as a Hugging Face checkpoint with a model card."""
    from spunge.cli import standalone

    if run is not None and model is None and task_vector is None:
        standalone.export_run(run=run, out=out, seed=seed)
    elif run is None and model is not None and task_vector is not None and seed is None:
        standalone.export(model=model, task_vector=task_vector, out=out)
    else:
        raise RecipeError("export: give a run's directory, or --model and --task-vector")
    if not quiet:
        screen.print(f"{out}: a checkpoint that AutoModelForCausalLM loads")


@app.command()
def evaluate(
    model: Model,
    suite: Annotated[str, typer.Option("--suite", help="A recipe, or a YAML list of evaluators.")],
    out: NewOut,
    task_vector: Annotated[Path | None, typer.Option("--task-vector", help="A task-vector directory.")] = None,
    words: Words = None,
    device: Device = "auto",
    dtype: Dtype = None,
    quiet: Quiet = False,
) -> None:
    """Asks a model, or model + task vector, the questions of a suite."""
    from spunge.recipe import reading

    evaluators = reading.read_suite(suite, words or [])
    from spunge.cli import standalone

    with _watch(quiet) as display:
        scores = standalone.evaluate(
            model=model, task_vector=task_vector, evaluators=evaluators, out=out,
            device=device, dtype=_dtype(dtype), progress=display.step,
        )  # fmt: skip
    if not quiet:
        table = Table("suite", "task", "metric", "value", "n")
        for score in scores:
            table.add_row(score["suite"], score["task"], score["metric"], f"{score['value']:.4f}", str(score["n"]))
        screen.print(table)


@app.command()
def finetune(
    model: Model,
    text: Annotated[list[str], typer.Option("--data", help="A file or hub id of rows to learn; may be repeated.")],
    out: NewOut,
    words: Words = None,
    text_column: TextOption = None,
    prompt_column: PromptOption = None,
    response_column: ResponseOption = None,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = None,
    track: Track = None,
    quiet: Quiet = False,
) -> None:
    """Trains a model to say some rows, such as a benchmark's fictional authors, and writes a checkpoint."""
    from spunge.cli import standalone
    from spunge.recipe import reading
    from spunge.training.settings import Tuning

    settings = _settings(words)
    with _watch(quiet) as display, tracked(display.step, track, out.name) as progress:
        standalone.finetune(
            model=model,
            sources=_sources(text, {"text": text_column, "prompt": prompt_column, "response": response_column}),
            settings=reading.validate(Tuning, {"lora": None, **settings}, "finetune"),
            out=out,
            seed=seed,
            device=device,
            dtype=_dtype(dtype),
            progress=progress,
        )
    if not quiet:
        screen.print(f"{out}: a checkpoint that AutoModelForCausalLM loads")


@app.command()
def search(
    model: Model,
    forget: Annotated[list[str], typer.Option("--forget", help="[name=]FILE or hub id; several are topics.")],
    retain: Annotated[list[str], typer.Option("--retain", help="A file or hub id.")],
    layers: Annotated[str, typer.Option("--layers", help="The layers to try, such as 3,5,7.")],
    out: NewOut,
    words: Words = None,
    text_column: TextOption = None,
    prompt_column: PromptOption = None,
    response_column: ResponseOption = None,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = None,
    quiet: Quiet = False,
) -> None:
    """Finds RMU's layer, steering coefficient and alpha for a model nobody has tuned it for, in short runs."""
    from spunge.cli import standalone
    from spunge.recipe import reading
    from spunge.unlearners import AdaptiveRMU

    settings = _settings(words)
    if not all(part.isdecimal() for part in layers.split(",")):
        raise RecipeError(f"--layers {layers}: write numbers with commas, such as 3,5,7")
    numbers = [int(part) for part in layers.split(",")]
    columns = {"text": text_column, "prompt": prompt_column, "response": response_column}
    with _watch(quiet) as display:
        trials = standalone.search(
            model=model,
            forget=_topics(forget, columns),
            retain=_retained(retain, columns),
            settings=reading.validate(AdaptiveRMU, {"layer": numbers[0], "max_steps": 40, **settings}, "search"),
            layers=numbers,
            out=out,
            seed=seed,
            device=device,
            dtype=_dtype(dtype),
            progress=display.step,
        )
    if not quiet:
        table = Table("layer", "steering_coefficient", "alpha", "forget cosine", "retain cosine", "score")
        for trial in trials:
            figures = (trial.forget_cosine, trial.retain_cosine, trial.score)
            coefficient = "diverged" if trial.steering_coefficient is None else f"{trial.steering_coefficient:.3g}"
            shown = (coefficient, f"{trial.alpha:g}", *(f"{value:.3f}" for value in figures))
            table.add_row(str(trial.layer), *shown)
        screen.print(table)
        screen.print(f"a recipe takes the best with unlearn: {{method: rmu, search: {out}}}")


@app.command()
def train_classifier(
    text: Annotated[list[str], typer.Option("--data", help="A file or hub id of labelled rows; may be repeated.")],
    label: Annotated[str, typer.Option("--label", help="A polars SQL expression: which rows are positive.")],
    out: NewOut,
    words: Words = None,
    text_column: TextOption = None,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Trains a small text classifier for toxicity where no published one can be had, and states its AUC."""
    from spunge.asking.train_classifier import ClassifierTraining, LabelledTexts
    from spunge.asking.train_classifier import train_classifier as train
    from spunge.recipe import reading
    from spunge.rows.sources import load_corpus

    given = _settings(words)
    settings = reading.validate(ClassifierTraining, given, "train-classifier")
    rows = load_corpus(_sources(text, {"text": text_column}))
    with _watch(quiet) as display:
        examples = LabelledTexts(rows.texts, rows.mask(label, label="--label"))
        done = train(examples, out, settings=settings, seed=seed, progress=display.step)
    if not quiet:
        screen.print(f"{out}: AUC {done.auc:.3f}, accuracy {done.accuracy:.3f} on {done.held_out} held-out rows")


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run's directory.")],
    watch: Annotated[bool, typer.Option("--watch", help="Write it again and again while the run goes on.")] = False,
) -> None:
    """Writes the report of a run again, from its artifacts."""
    from spunge import report as reports

    for page in reports.watch(run) if watch else [reports.write(run)]:
        screen.print(str(page), soft_wrap=True)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Two or more run directories.")],
    out: Annotated[
        Path, typer.Option("--out", help="A new directory, or that of an earlier comparison of the same runs.")
    ] = Path("comparison"),
) -> None:
    """Writes one page over several runs, matched by item."""
    from spunge import report as reports

    screen.print(str(reports.compare(runs, out)), soft_wrap=True)


@store.command("ls")
def list_store(out: Out = Path("runs")) -> None:
    """Lists every artifact: its stage, key and size, when it was made, in how long, and for which runs."""
    from spunge.errors import ArtifactError
    from spunge.files import format_bytes, size_of
    from spunge.foretell import plan as planning
    from spunge.run.store import Store

    runs: Mapping[str, Sequence[str]] = {}
    try:
        runs = planning.needed(out)
    except ArtifactError as error:
        aside.print(redacted(f"spunge: warning: {error}"), soft_wrap=True)
    table = Table("stage", "key", "size", "made", "seconds", "runs")
    total = count = 0
    for artifact in Store(out / "store").contents():
        used, made = size_of(artifact.path), datetime.fromtimestamp(artifact.path.stat().st_mtime)
        shown = (format_bytes(used), f"{made:%Y-%m-%d %H:%M}", str(artifact.manifest.get("seconds", "")))
        table.add_row(
            artifact.path.parent.name, artifact.path.name, *shown, ", ".join(runs.get(artifact.path.name, []))
        )
        total, count = total + used, count + 1
    screen.print(table)
    screen.print(f"{count} artifacts, {format_bytes(total)}")


@store.command()
def verify(out: Out = Path("runs")) -> None:
    """Reads every artifact and compares it with the digests in its manifest; changes nothing."""
    from spunge.errors import ArtifactError
    from spunge.run.store import Store

    kept = Store(out / "store")
    damaged = list(kept.damaged())
    for path, what in damaged:
        screen.print(f"{path}: {what} is damaged", soft_wrap=True)
    if damaged:
        raise ArtifactError(f"{len(damaged)} damaged; the next run that needs one sets it aside and makes it again")
    screen.print(f"{sum(1 for _ in kept.contents())} artifacts, all as they were published")


@store.command()
def gc(
    out: Out = Path("runs"),
    delete: Annotated[bool, typer.Option("--delete", help="Remove it; without this, only say what would go.")] = False,
) -> None:
    """Says what no run under the runs root refers to, and what broken attempts left; with --delete, removes it."""
    from spunge.files import format_bytes, size_of
    from spunge.foretell import plan as planning
    from spunge.run.store import Store

    store = Store(out / "store")
    total = count = 0
    with store.held(alone=True) if delete else nullcontext():
        for path in store.superfluous(planning.needed(out)):
            used = size_of(path)
            total, count = total + used, count + 1
            screen.print(f"{format_bytes(used):>9}  {path}", soft_wrap=True)
            if delete:
                store.delete(path)
    screen.print(f"{count} {'removed' if delete else 'to remove with --delete'}, {format_bytes(total)}")


@app.command()
def recipes() -> None:
    """Lists the recipes that ship with Spunge."""
    from spunge.recipe import reading, shipped

    table = Table("recipe", "method", "what it asks")
    for name in shipped.recipes():
        recipe = reading.read(name)
        table.add_row(name, getattr(recipe.unlearn, "method", ""), recipe.description or "")
    screen.print(table)


@app.command()
def methods() -> None:
    """Lists every method with its settings and their defaults."""
    from spunge.recipe import schema

    for title, kinds in schema.methods().items():
        table = Table("method", "settings", title=title, title_justify="left")
        for name, kind in kinds.items():
            fields = (known.alias or field for field, known in kind.model_fields.items())
            table.add_row(name, ", ".join(field for field in fields if field not in ("method", "by")))
        screen.print(table)


@app.command()
def schema() -> None:
    """Prints the JSON Schema of a recipe, for editors."""
    from spunge.recipe import schema

    typer.echo(json.dumps(schema.json_schema(), indent=1, ensure_ascii=False))


def _sweep(recipe: str, words: Sequence[str] | None, sweep: Sequence[str], *, out: Path, **options: Any) -> None:
    """Sweeps the merge's settings within a run; any other setting retrains, so each of its values is a run of its own.

    All are on one store, so that only what a value changes is computed.
    """
    from spunge import report as reports
    from spunge.recipe import overrides

    axes, grid = [], []
    for word in sweep:
        key, equals, values = word.partition("=")
        if not equals or not overrides.is_setting(word) or not all(values.split(",")):
            raise RecipeError(f"--sweep {word!r}: write key=v1,v2, such as merge.density=0.1,0.2")
        if key.startswith("merge."):
            grid.append(f"{key}: [{values}]")
        else:
            axes.append([f"{key}={value}" for value in values.split(",")])
    words = [*(words or []), *([f"sweep={{{', '.join(grid)}}}"] if grid else [])]
    if not axes:
        run(recipe, words, out=out, **options)
        return
    name = _read(recipe, words, options["seeds"]).name
    points = {
        re.sub(r"[^A-Za-z0-9._-]+", "-", f"{name}-{'-'.join(point)}")[:100]: [*words, *point]
        for point in itertools.product(*axes)
    }
    for named, settings in points.items():  # a mistake in any of them is found before the first is run
        _read(recipe, [*settings, f"name={named}"], options["seeds"])
    for named, settings in points.items():
        run(recipe, [*settings, f"name={named}"], out=out, **options)
    if len(points) > 1 and not options["check"]:
        page = reports.compare([out / named for named in points], out / f"{name}-sweep", replace=True)
        if not (options["quiet"] or options["as_json"]):
            screen.print(f"sweep: {page}", soft_wrap=True)


def _read(recipe: str, words: Sequence[str] | None, seeds: int | None, offline_root: Path | None = None) -> Experiment:
    from spunge.recipe import offline, reading

    settings = [*(words or []), *([f"seeds={list(range(seeds))}"] if seeds else [])]
    read = reading.read(recipe, settings)
    return read if offline_root is None else offline.from_folder(read, offline_root)


def _sorted(words: Sequence[str] | None) -> tuple[dict[str, Any], list[str]]:
    """Tells settings (key=value) from other words; `./a=b` is a path."""
    from spunge.recipe import overrides

    settings = [word for word in words or [] if overrides.is_setting(word)]
    others = [word for word in words or [] if not overrides.is_setting(word)]
    return overrides.parse(settings), others


def _settings(words: Sequence[str] | None) -> dict[str, Any]:
    settings, others = _sorted(words)
    if others:
        raise RecipeError(f"{others[0]!r} is not a setting: write key=value")
    return settings


def _sources(paths: Sequence[str], columns: Mapping[str, str | None]) -> list[Source]:
    """One source a path, with Spunge's names for its columns."""
    from spunge.rows.sources import Source

    renamed = {ours: theirs for ours, theirs in columns.items() if theirs is not None and theirs != ours}
    return [Source(path=path, columns=renamed) for path in paths]


def _topics(words: Sequence[str], columns: Mapping[str, str | None]) -> dict[str, list[Source]]:
    """Returns the sources of every topic of a forget set, each word being `[name=]FILE`."""
    topics: dict[str, list[Source]] = {}
    for word in words:
        name, path = _named(word)
        topics.setdefault(name, []).extend(_sources([path], columns))
    return topics


def _retained(paths: Sequence[str], columns: Mapping[str, str | None]) -> list[Source]:
    """Returns the sources of a retain set; it may well have other columns than the forget set."""
    from spunge.rows.sources import Source, column_names

    return [
        source if set(source.columns.values()) <= set(column_names(source.path)) else Source(path=source.path)
        for source in _sources(paths, columns)
    ]


def _named(word: str) -> tuple[str, str]:
    """Splits `name=FILE`, where the name may be missing; a path that holds `=` is given as `./a=b`."""
    name, equals, path = word.partition("=")
    if not equals or "/" in name or name.startswith("."):
        return "", word
    if not path:
        raise RecipeError(f"--forget {word!r}: no file after the name")
    return name, path


def _dtype(dtype: str | None) -> str | None:
    if dtype is not None and dtype not in DTYPES:
        raise RecipeError(f"--dtype {dtype}: use one of {', '.join(DTYPES)}")
    return dtype


@contextmanager
def _watch(quiet: bool, as_json: bool = False) -> Iterator[Display]:
    from spunge.cli import progress

    with progress.watch(aside, sys.stdout, quiet=quiet, as_json=as_json) as display:
        yield display


def _show(directory: Path) -> None:
    from spunge import report as reports

    results = json.loads((directory / "report" / "results.json").read_text(encoding="utf-8"))
    for summary in reports.summary(results):
        justify: Any = {"title_justify": "left", "caption_justify": "left"}
        table = Table(*summary.header, title=summary.title, caption=summary.note or None, **justify)
        for row in summary.rows:
            table.add_row(*row)
        screen.print(table)
    manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    computed = sum(stage["status"] == "computed" for stage in manifest["stages"])
    screen.print(f"{computed} stages computed, {len(manifest['stages']) - computed} reused")
    screen.print(f"report: {directory / 'report' / 'index.html'}", soft_wrap=True)

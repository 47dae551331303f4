"""The options of the commands that take one step without a recipe; what they do is in `run.standalone`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from spunge.cli.options import (
    DTYPES,
    AllowCode,
    AsJson,
    Columns,
    Device,
    Dtype,
    Model,
    NewOut,
    Quiet,
    Rank,
    Seed,
    Suite,
    Track,
    Words,
    aside,
    check_dtype,
    methods_of,
    retained_of,
    screen,
    settings_of,
    show_report,
    sources_of,
    split_words,
    topics_of,
    watch,
    write_line,
)
from spunge.cli.tracking import tracked
from spunge.errors import RecipeError
from spunge.variants import MERGED, label_of

if TYPE_CHECKING:
    from spunge.interfaces import Evaluator
    from spunge.run.parts import Part
    from spunge.weights.language_model import LanguageModel

_MOVED = 0.02
"""A score of RMU's search below this is a model that is as it was."""


def unlearn(
    model: Model,
    forget: Annotated[list[str], typer.Option("--forget", help="[name=]FILE or hub id; several are topics.")],
    out: NewOut,
    words: Words = None,
    retain: Annotated[list[str] | None, typer.Option("--retain", help="A file or hub id.")] = None,
    method: Annotated[
        str, typer.Option("--method", help="`spunge methods` lists them.", autocompletion=methods_of("unlearn"))
    ] = "rmu",
    columns: Columns = None,
    allow_code: AllowCode = False,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = None,
    track: Track = None,
    quiet: Quiet = False,
) -> None:
    """Unlearns one forget set from a model, and writes the task vector."""
    from spunge.recipe import reading
    from spunge.recipe.schema import AnyUnlearn

    settings = settings_of(words)
    unlearner = reading.validate(AnyUnlearn, {"method": method, **settings}, "unlearn", allow_code=allow_code)
    topics, retained = topics_of(forget, columns), retained_of(retain or [], columns)
    from spunge.run import standalone

    with watch(quiet) as display, tracked(display.step, track, out.name) as progress:
        step = standalone.Step(model, out, seed, device, check_dtype(dtype), progress)
        vector = standalone.unlearn(step, unlearner, topics, retained)
    if not quiet:
        rows = vector.provenance["data"]["rows"]
        screen.print(f"{out}: {len(vector)} changed parameters, norm {vector.norm:.4g}, of {rows} rows")
        if reach := vector.provenance.get("adapter_reach"):
            screen.print(
                f"  the adapter reaches {reach['adapted']:.1%} of the parameters; {reach['fused_experts']:.1%} are "
                "fused experts, on which no LoRA is put"
            )


def merge(
    out: NewOut,
    words: Annotated[list[str] | None, typer.Argument(help="VARIANT … and settings key=value …")] = None,
    base: Annotated[
        str | None, typer.Option("--base", help="The base model's directory or hub id; of parts of runs, theirs.")
    ] = None,
    method: Annotated[
        str, typer.Option("--method", help="`spunge methods` lists them.", autocompletion=methods_of("merge"))
    ] = "ties",
    form: Annotated[str, typer.Option("--as", help="checkpoint, task-vector or adapter.")] = "checkpoint",
    only: Annotated[list[str] | None, typer.Option("--only", help="Merge this variant; may be repeated.")] = None,
    without: Annotated[list[str] | None, typer.Option("--except", help="Leave this one out; may be repeated.")] = None,
    rank: Rank = 64,
    allow_code: AllowCode = False,
    seed: Seed = 0,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Merges variants of one base: task vectors, PEFT adapters, checkpoints, or parts of runs (RUN:subset:women)."""
    from spunge.recipe import reading
    from spunge.recipe.schema import AnyMerge

    settings, variants = split_words(words)
    if not variants:
        raise RecipeError(
            "nothing to merge: name at least one task-vector, adapter or checkpoint directory, or a part of a run"
        )
    merger = reading.validate(AnyMerge, {"method": method, **settings}, "merge", allow_code=allow_code)
    from spunge.run import standalone

    with watch(quiet) as display:
        model = _base_of("--base", base, *variants)
        step = standalone.Step(model, out, seed, device, progress=display.step)
        written = standalone.parse_form(form, rank)
        diagnostics = standalone.merge(step, merger, variants, written, only=only or (), without=without or ())
    if not quiet:
        screen.print(f"{out}: {' and '.join(diagnostics['variants'])} merged by {method}")
        overall = diagnostics["overall"]
        for name, share in overall["coverage"].items():
            if share is not None:
                screen.print(f"  {name}: {share:.0%} of this removal is in the merged task vector")
        screen.print(
            f"  signs conflict in {overall['sign_conflict'] or 0:.1%} of the weights changed after the trim; at random "
            f"{overall['sign_conflict_by_chance'] or 0:.1%} would"
        )
        if diagnostics.get("rounding") is not None:
            screen.print(
                f"  {diagnostics['rounding']:.2g} of the delta's energy is lost to the base model's number format"
            )
        if diagnostics.get("energy") is not None:
            screen.print(f"  the adapter keeps {diagnostics['energy']:.1%} of the merged delta's energy")
        for warning in diagnostics["warnings"]:
            aside.print(f"spunge: warning: {warning}", soft_wrap=True)


def export(
    out: NewOut,
    run: Annotated[
        str | None, typer.Argument(help="A run's directory, or a part of it as RUN:subset:women.", show_default=False)
    ] = None,
    variant: Annotated[
        str | None, typer.Option("--variant", help="Of the run: merged (the default), joint, subset:women, …")
    ] = None,
    form: Annotated[str, typer.Option("--as", help="checkpoint, task-vector or adapter.")] = "checkpoint",
    rank: Rank = 64,
    model: Annotated[str | None, typer.Option("--model", help="Without a run: a model directory or hub id.")] = None,
    task_vector: Annotated[str | None, typer.Option("--task-vector", help="Without a run: a task vector.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Which of the run's seeds; default: its first.")] = None,
    quiet: Quiet = False,
) -> None:
    """Writes a run's model, or model + task vector, as a checkpoint, task vector or adapter with a model card."""
    from spunge.run import parts, standalone

    written = standalone.parse_form(form, rank)
    part: parts.Part | None = None
    if run is not None and model is None and task_vector is None:
        part = part_of(run, variant, seed)
        said = standalone.export_part(part, out, form=written)
    elif run is None and task_vector is not None and seed is None and variant is None:
        said = standalone.export(_base_of("--model", model, task_vector), task_vector, out, form=written)
    else:
        raise RecipeError("export: give a run, perhaps with --variant and --seed; or --model and --task-vector")
    if not quiet:
        who = ""
        if part is not None and part.variant == MERGED.name:
            show_report(part.run / "report")  # its verdict is on the merged model, and on no other
        elif part is not None:
            who = f"{label_of(part.variant)} of {part.run}, "
        write_line(screen, f"{out}: {who}{_LOADED_BY[form]}")
        if form == "adapter":
            from spunge.weights.adapter import base_of

            write_line(
                screen,
                f"  PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base_of(out)!r}), {str(out)!r})",
            )
        if (energy := said.get("energy")) is not None:
            screen.print(f"  the adapter keeps {energy:.1%} of the change's energy")


_LOADED_BY = {
    "checkpoint": "a checkpoint that AutoModelForCausalLM loads",
    "adapter": "an adapter that PEFT's PeftModel.from_pretrained loads onto the base model",
    "task-vector": "a task vector that merge, evaluate and export take, and spunge.load_vector reads",
}


def part_of(run: str, variant: str | None, seed: int | None) -> Part:
    """Returns which model of a run is meant, be it by option or as RUN:VARIANT."""
    from spunge.run import parts

    named = run if Path(run).is_dir() else parts.find(run)
    if not isinstance(named, parts.Part):
        return parts.part(run, variant or "merged", seed)
    if variant is not None or seed is not None:
        raise RecipeError(f"{run} says which part, and its seed as {run}@0: leave out --variant and --seed")
    return named


def _base_of(option: str, model: str | None, *words: str) -> LanguageModel:
    """Returns the base model: the one that is given, or that of the first part of a run among the words."""
    from spunge.run import parts
    from spunge.weights.language_model import LanguageModel

    if model is not None:
        return LanguageModel(id=model)
    for word in words:
        if isinstance(part := parts.find(word), parts.Part):
            return part.model
    raise RecipeError(f"{option}: name the base model; it is known of a part of a run alone, such as runs/x:joint")


def evaluate(
    suite: Suite,
    out: NewOut,
    model: Annotated[
        str | None, typer.Option("--model", help="A model directory or hub id; of a part of a run, its own.")
    ] = None,
    task_vector: Annotated[
        str | None, typer.Option("--task-vector", help="A task-vector directory, or a part of a run: RUN:joint.")
    ] = None,
    words: Words = None,
    allow_code: AllowCode = False,
    device: Device = "auto",
    dtype: Dtype = None,
    quiet: Quiet = False,
) -> None:
    """Asks a model, or model + task vector, the questions of a suite."""
    from spunge.recipe import reading

    evaluators = reading.read_suite(suite, words or [], allow_code=allow_code)
    from spunge.run import standalone

    with watch(quiet) as display:
        base = _base_of("--model", model, *([] if task_vector is None else [task_vector]))
        step = standalone.Step(base, out, 0, device, check_dtype(dtype), display.step)
        scores = standalone.evaluate(step, evaluators, task_vector)
    if not quiet:
        screen.print(_scored(evaluators, scores))


def audit(
    base: Annotated[str, typer.Argument(help="The base model: a directory or hub id.")],
    models: Annotated[
        list[str], typer.Argument(help="MODEL …: checkpoints, adapters, task vectors of it, or RUN:joint.")
    ],
    suite: Suite,
    out: Annotated[Path, typer.Option("--out", "-o", help="The directory; that of an earlier audit is continued.")],
    forget: Annotated[list[str] | None, typer.Option("--forget", help="Rows of what was to go.")] = None,
    retain: Annotated[list[str] | None, typer.Option("--retain", help="Rows of what was to stay.")] = None,
    unseen: Annotated[
        list[str] | None, typer.Option("--unseen", help="Rows like those of --forget, never read.")
    ] = None,
    oracle: Annotated[str | None, typer.Option("--oracle", help="A model that never knew what must go.")] = None,
    attacks: Annotated[str, typer.Option("--attacks", help="cheap, full, none, or names with commas.")] = "full",
    by: Annotated[str | None, typer.Option("--by", help="The attribute whose values are told apart.")] = None,
    columns: Columns = None,
    allow_code: AllowCode = False,
    device: Device = "auto",
    dtype: Dtype = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Processes to work in.")] = 1,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Asks models that anyone unlearned with anything what they forgot and kept, and what attacks bring back."""
    from spunge import outside
    from spunge.recipe import reading
    from spunge.recipe.schema import attacks_named

    suites = reading.read_suite(suite, allow_code=allow_code)
    try:
        with outside.code_from(Path.cwd(), allowed=allow_code):
            named = attacks if attacks in ("cheap", "full") else [] if attacks == "none" else attacks.split(",")
            kinds = attacks_named(named)
    except ValueError as error:
        raise RecipeError(f"--attacks: {error}") from error
    rows = sources_of(forget or [], columns)
    from spunge.run.audit import Audit
    from spunge.run.audit import audit as run_audit
    from spunge.run.compute import Compute
    from spunge.weights.language_model import LanguageModel

    what = Audit(
        LanguageModel(id=base), models, suites, kinds, sampled=attacks == "cheap", oracle=oracle, forget=rows,
        retain=retained_of(retain or [], columns), unseen=sources_of(unseen or [], columns), by=by,
    )  # fmt: skip
    with watch(quiet, as_json) as display:
        command = shlex.join(["spunge", *sys.argv[1:]])
        compute = Compute(device, check_dtype(dtype), jobs)
        directory = run_audit(
            what, out, compute=compute, progress=display.step, listener=display.event, command=command
        )  # fmt: skip
        display.event("done", {"run": str(directory), "report": str(directory / "report" / "index.html")})
    if not (quiet or as_json):
        show_report(directory / "report")
        write_line(screen, f"report: {directory / 'report' / 'index.html'}")


def _scored(evaluators: Sequence[Evaluator], scores: Sequence[Mapping[str, Any]]) -> Table:
    """What the suites declare that they measure, each with its interval and the way that is better."""
    from spunge.report.findings import Column
    from spunge.report.rows import read_score
    from spunge.report.tables import Cell, level

    declared = {(suite.suite, metric.name): (metric, suite.goal) for suite in evaluators for metric in suite.measures}
    table = Table("suite", "task", "metric", "value", "95 % interval", "n")
    for score in map(read_score, scores):
        if (score.suite, score.metric) not in declared:  # bookkeeping
            continue
        metric, goal = declared[score.suite, score.metric]
        column = Column(score.suite, score.task, metric, goal)
        shown = Cell("none: NaN") if isnan(score.value) else level(score, column)
        unit = " %" if column.share and shown.value is not None else ""
        name = f"{metric.in_words} {column.arrow}"
        table.add_row(score.suite, score.task, name, f"{shown.text}{unit}", shown.interval, str(score.n))
    return table


def finetune(
    model: Model,
    text: Annotated[list[str], typer.Option("--data", help="A file or hub id of rows to learn; may be repeated.")],
    out: NewOut,
    words: Words = None,
    columns: Columns = None,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = None,
    track: Track = None,
    quiet: Quiet = False,
) -> None:
    """Trains a model to say some rows, such as a benchmark's fictional authors, and writes a checkpoint."""
    from spunge.recipe import reading
    from spunge.run import standalone
    from spunge.training.settings import Tuning

    settings = settings_of(words)
    with watch(quiet) as display, tracked(display.step, track, out.name) as progress:
        step = standalone.Step(model, out, seed, device, check_dtype(dtype), progress)
        tuning = reading.validate(Tuning, {"lora": None, **settings}, "finetune")
        standalone.finetune(step, tuning, sources_of(text, columns))
    if not quiet:
        screen.print(f"{out}: a checkpoint that AutoModelForCausalLM loads")


def search(
    model: Model,
    forget: Annotated[list[str], typer.Option("--forget", help="[name=]FILE or hub id; several are topics.")],
    retain: Annotated[list[str], typer.Option("--retain", help="A file or hub id.")],
    layers: Annotated[str, typer.Option("--layers", help="The layers to try, such as 3,5,7.")],
    out: NewOut,
    words: Words = None,
    columns: Columns = None,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = None,
    quiet: Quiet = False,
) -> None:
    """Finds RMU's layer, steering coefficient and alpha for a model nobody has tuned it for, in short runs."""
    from spunge.recipe import reading
    from spunge.run import standalone
    from spunge.unlearners import AdaptiveRMU

    settings = settings_of(words)
    if not all(part.isdecimal() for part in layers.split(",")):
        raise RecipeError(f"--layers {layers}: write numbers with commas, such as 3,5,7")
    numbers = [int(part) for part in layers.split(",")]
    with watch(quiet) as display:
        step = standalone.Step(model, out, seed, device, check_dtype(dtype), display.step)
        rmu = reading.validate(AdaptiveRMU, {"layer": numbers[0], "max_steps": 40, **settings}, "search")
        trials = standalone.search(step, rmu, numbers, topics_of(forget, columns), retained_of(retain, columns))
    if not quiet:
        table = Table("layer", "steering_coefficient", "alpha", "forget cosine", "retain cosine", "score")
        for trial in trials:
            figures = (trial.forget_cosine, trial.retain_cosine, trial.score)
            coefficient = "diverged" if trial.steering_coefficient is None else f"{trial.steering_coefficient:.3g}"
            shown = (coefficient, f"{trial.alpha:g}", *(f"{value:.3f}" for value in figures))
            table.add_row(str(trial.layer), *shown)
        screen.print(table)
        if trials[0].score < _MOVED:
            write_line(
                screen,
                f"nothing worked: no trial moved what must go apart from what must stay at learning_rate="
                f"{rmu.learning_rate:g}, which is not searched here; raise it, or let `spunge auto` search it",
            )
        else:
            screen.print(f"a recipe takes the best with unlearn: {{method: rmu, search: {out}}}")
        screen.print("`spunge auto` searches methods, learning rates and merges as well, and judges what it finds")


def import_gguf(
    file: Annotated[Path, typer.Argument(help="A GGUF file, as llama.cpp reads models.")],
    out: Annotated[
        Path | None, typer.Argument(help="The new directory; default: the file's name, and that it is dequantised.")
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="What to store: float32 (exact), bfloat16 or float16.")] = (
        "float32"
    ),
    quiet: Quiet = False,
) -> None:
    """Turns a GGUF file into a model directory, dequantised where it is quantised; `model: {id: …}` takes that."""
    if dtype not in DTYPES[1:]:
        raise RecipeError(f"--dtype {dtype}: use one of {', '.join(DTYPES[1:])}")
    from spunge.weights import gguf

    opened = gguf.open_gguf(file)
    written = gguf.convert(opened, out or opened.directory, dtype=dtype)  # pyright: ignore[reportArgumentType]
    if not quiet:
        how = f"dequantised from {opened.format}" if opened.dequantised else f"from {opened.format}"
        screen.print(f"{written}: a checkpoint that AutoModelForCausalLM loads, {how}", soft_wrap=True)


def train_classifier(
    text: Annotated[list[str], typer.Option("--data", help="A file or hub id of labelled rows; may be repeated.")],
    label: Annotated[str, typer.Option("--label", help="A polars SQL expression: which rows are positive.")],
    out: NewOut,
    words: Words = None,
    columns: Columns = None,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Trains a small text classifier for toxicity where no published one can be had, and states its AUC."""
    from spunge.asking.train_classifier import ClassifierTraining, LabelledTexts
    from spunge.asking.train_classifier import train_classifier as train
    from spunge.recipe import reading
    from spunge.rows.sources import load_corpus

    settings = reading.validate(ClassifierTraining, settings_of(words), "train-classifier")
    rows = load_corpus(sources_of(text, columns))
    with watch(quiet) as display:
        examples = LabelledTexts(rows.texts, rows.mask(label, label="--label"))
        done = train(examples, out, settings=settings, seed=seed, progress=display.step)
    if not quiet:
        screen.print(f"{out}: AUC {done.auc:.3f}, accuracy {done.accuracy:.3f} on {done.held_out} held-out rows")

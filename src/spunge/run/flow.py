"""The flow: split the forget set, unlearn each subset, merge, evaluate every variant, report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import polars as pl

from spunge import report
from spunge.errors import ArtifactError, DataError, RecipeError, first_line, redacted
from spunge.files import locked, replace_text, replaced
from spunge.interfaces import RETAIN, Progress, Splitter, scale_of, silent
from spunge.recipe import experiment as recipe
from spunge.recipe.experiment import Experiment, ForgetSet
from spunge.rows.sources import SUBSET, Corpus, concatenate, load_corpus
from spunge.run import sweep
from spunge.run.executors import Executor, Task
from spunge.run.executors.cluster import Cluster
from spunge.run.executors.local import Local
from spunge.run.executors.planned import Planned
from spunge.run.executors.workers import slots
from spunge.run.journal import Journal, Listener, Outcome, unheard
from spunge.run.stages import Base, Evaluate, Generate, Merge, Score, Split, Unlearn, UnlearnInTurn, Variant
from spunge.run.store import Artifact, Store, derived_seed
from spunge.run.sweep import Point
from spunge.splitters import AtRandom


def flow(experiment: Experiment, rows: Rows, executor: Executor) -> Outcome:
    """The whole experiment: every stage in order, each built from the artifacts of the one before.

    Args:
        experiment: The recipe.
        rows: Its rows, from `load`.
        executor: Runs the tasks, or only says what it would run.

    Returns:
        The variants, and what they were evaluated to.
    """
    base, forget, retain = Base(experiment.model, rows.weights), rows.forget, rows.retain
    controls = set(experiment.controls)
    evaluators = sweep.on_test(experiment.evaluate) if experiment.sweep else experiment.evaluate
    outcome = Outcome()
    for seed in experiment.seeds:
        # split
        split = Split(experiment.split, forget, base, seed)
        subsets = read_subsets(forget, executor.run([split])[0], experiment.split, experiment.forget, seed)
        check_overrides(experiment, subsets)
        union = concatenate(rows.with_subset(name) for name, rows in subsets.items())
        retained = dict.fromkeys(subsets, retain)
        if experiment.retain and experiment.retain.match and retain is not None:
            retained = match_retain(retain, executor.run([Split(experiment.split, retain, base, seed)])[0], subsets)

        # unlearn every subset apart, always from the base; and, as everybody does it, all of them jointly
        parts = [
            Unlearn(
                "subset",
                f"subset:{name}",
                base,
                experiment.subset_unlearner(name),
                rows.with_subset(name),
                retained[name],
                seed,
            )
            for name, rows in subsets.items()
        ]
        whole = union if experiment.joint.data == "union" else process(forget, experiment.forget, seed)
        joint = Unlearn("joint", "joint", base, experiment.joint_unlearner, whole, retain, seed)
        first = unlearn(executor, [*parts, joint] if {"joint", "joint_equal_steps"} & controls else parts)
        unlearned, baselines = first[: len(parts)], first[len(parts) :]

        # the controls: joint with as many steps as all subsets together, and a split at random into the same sizes
        others, drawn, weighed_as = [], {}, {}
        if "joint_equal_steps" in controls:
            steps_of = tuple(variant.artifact.path for variant in [*baselines, *unlearned] if variant.artifact)
            others.append(replace(joint, name="joint_equal_steps", steps_of=steps_of))
        if "random_split" in controls:
            at_random, pooled = (
                AtRandom(sizes=[len(rows) for rows in subsets.values()]),
                Corpus(union.rows.drop(SUBSET)),
            )
            drawn = read_subsets(pooled, executor.run([Split(at_random, pooled, base, seed)])[0], at_random, None, seed)
            weighed_as = dict(zip(subsets, at_random.names, strict=True))
            others += [
                Unlearn("control", name, base, experiment.unlearn, rows.with_subset(name), retain, seed)
                for name, rows in drawn.items()
            ]
        second = unlearn(executor, others)
        baselines += [variant for variant in second if variant.kind == "joint"]
        in_turn = []
        if "sequential" in controls:
            in_turn = [Variant("sequential", "control", seed, executor.run([UnlearnInTurn(tuple(parts), seed)])[0])]
        at_random_unlearned = [variant for variant in second if variant.kind == "control"]

        # merge; of a sweep's settings each variant takes the one that does best on the validation part of the items
        merged = [merge(executor, "merged", "spunge", experiment, base, unlearned, {**subsets, RETAIN: retain}, seed)]
        if at_random_unlearned:
            fit = {**drawn, RETAIN: retain}
            merged.append(
                merge(executor, "control", "random_split", experiment, base, at_random_unlearned, fit, seed, weighed_as)
            )
        rivals = [scaled(experiment, variant) for variant in baselines]
        chosen, points = pick(executor, experiment, base, [*rivals, *merged], seed)
        outcome.points += points
        baselines, merged = chosen[: len(rivals)], chosen[len(rivals) :]

        # evaluate every variant on what must go and what must stay
        mine = [Variant("base", "base", seed), *baselines, *in_turn, *unlearned, *merged]
        tasks = [(variant, Evaluate(variant, evaluator, base)) for variant in mine for evaluator in evaluators]
        artifacts = ask(executor, [task for _, task in tasks])
        outcome.evaluations += [(variant, artifact) for (variant, _), artifact in zip(tasks, artifacts, strict=True)]
        outcome.variants += mine
    return outcome


def run(
    experiment: Experiment,
    *,
    out: str | Path = "runs",
    device: str = "auto",
    dtype: str | None = None,
    jobs: int = 1,
    executor: Literal["local", "ray"] = "local",
    address: str = "auto",
    progress: Progress = silent,
    listener: Listener = unheard,
    command: str = "",
) -> Path:
    """Runs an experiment and writes its report; what the store holds already is not computed again.

    Args:
        experiment: The recipe, from `experiment.read`.
        out: The runs root; the run's own directory in it is named after the experiment.
        device: A torch device, or `auto`.
        dtype: What to compute in; None is the model's own.
        jobs: Processes to run independent tasks in; with `cuda` each has a GPU of its own, as far as there are.
        executor: `local`, or `ray` for the hosts of a cluster.
        address: The Ray cluster's `host:port`.
        progress: Told of every step.
        listener: Told of the run's events: `planned`, with its `steps`, and `finished`, with the task that has ended.
        command: What the user typed, noted in the report.

    Returns:
        The run's directory.

    Raises:
        SpungeError: Something is missing or wrong; the message says what.
    """
    device = choose_device(device) if executor == "local" or device != "cuda" else device
    if dtype is not None:  # it can move a result, so it is part of what is run
        experiment = experiment.model_copy(update={"model": experiment.model.model_copy(update={"dtype": dtype})})
    rows = load(experiment)
    planned = Planned(Store(Path(out) / "store"))
    flow(experiment, rows, planned)  # what is wrong is found before anything is written
    directory = Path(out) / experiment.name
    busy = "another run is at work there; wait for it, or give another --out"
    with locked(directory, busy), planned.store.held():
        replace_text(directory / "recipe.yaml", redacted(recipe.dump(experiment)))
        journal = Journal(directory, experiment, device, command, listener)
        where = _executor(executor, planned.store, device, jobs, address, progress, journal.note)
        try:
            journal.write("running")
            listener("planned", {"steps": planned.steps})
            with where:
                outcome = flow(experiment, rows, where)
            write_items(directory, outcome.evaluations)
        except BaseException as error:
            with suppress(ArtifactError):  # on a full disk the first error is the one to tell
                journal.write("failed", warnings=[f"{type(error).__name__}: {error}"])
            raise
        journal.write("done", outcome)
        report.write(directory)
    return directory


def _executor(
    kind: Literal["local", "ray"],
    store: Store,
    device: str,
    jobs: int,
    address: str,
    progress: Progress,
    finished: Callable[[Task, Artifact], None],
) -> Local | Cluster:
    if kind == "local":
        return Local(store, slots(device, jobs), progress, finished)
    return Cluster(Store(store.root.absolute()), device, address, progress, finished)


@dataclass(frozen=True)
class Rows:
    """The rows of an experiment."""

    forget: Corpus
    retain: Corpus | None
    weights: bool = True
    """Whether the model's weights must be there."""


def load(experiment: Experiment, *, weights: bool = True) -> Rows:
    """Reads an experiment's rows, once for its plan and its run; refuses evaluations that cannot be made.

    Args:
        experiment: The recipe.
        weights: Whether the model's weights must be there: not for a plan.

    Raises:
        SpungeError: A source, a column, a row or a package is missing.
    """
    retain = load_corpus(experiment.retain.sources) if experiment.retain else None
    rows = Rows(load_corpus(experiment.forget.sources), retain, weights)
    known = experiment.evaluate
    for evaluator in [*sweep.on_test(known), *sweep.on_validation(known)] if experiment.sweep else known:
        evaluator.check()
        if evaluator.generation is not None:
            evaluator.generation.check(experiment.model)
    return rows


def unlearn(executor: Executor, tasks: Sequence[Unlearn]) -> list[Variant]:
    """Runs unlearning tasks and returns their variants."""
    return [
        Variant(task.name, task.kind, task.seed, artifact, scale_of(task.unlearner))
        for task, artifact in zip(tasks, executor.run(tasks), strict=True)
    ]


def ask(executor: Executor, tasks: Sequence[Evaluate]) -> list[Artifact]:
    """Runs evaluations; before those in steps, all that their variants write, then all that scorers say of it."""
    writing = {
        place: Generate(task.variant, generation, task.base, task.evaluator.suite)
        for place, task in enumerate(tasks)
        if (generation := task.evaluator.generation) is not None
    }
    steps = {place: [artifact] for place, artifact in zip(writing, executor.run([*writing.values()]), strict=True)}
    scoring = [
        (place, Score(scorer, steps[place][0], of))
        for place, of in writing.items()
        for scorer in tasks[place].evaluator.scorers
    ]
    for (place, _), artifact in zip(scoring, executor.run([task for _, task in scoring]), strict=True):
        steps[place].append(artifact)
    return executor.run([replace(task, steps=tuple(steps.get(place, ()))) for place, task in enumerate(tasks)])


Candidates = list[tuple[dict[str, Any], Variant]]
"""One variant under every setting of the sweep; without a sweep under the recipe's own alone."""


def merge(
    executor: Executor,
    kind: str,
    name: str,
    experiment: Experiment,
    base: Base,
    variants: Sequence[Variant],
    rows: Mapping[str, Corpus | None],
    seed: int,
    weighed_as: Mapping[str, str] | None = None,
) -> Candidates:
    """Merges variants into one, under every setting of the sweep.

    `rows` are for mergers that fit their inputs; `weighed_as` names the variant that a subset's weight is for.
    """
    fitted_on = {name: each for name, each in rows.items() if each is not None}
    tasks = []
    for point, merger in experiment.grid:
        if weighed_as is not None and merger.weights:
            weights = {weighed_as[subset]: weight for subset, weight in merger.weights.items()}
            merger = merger.model_copy(update={"weights": weights})
        fitted = fitted_on if merger.needs().grams else {}
        tasks.append(Merge(_titled(name, point), merger, base, tuple(variants), seed, fitted))
    merged = [Variant(name, kind, seed, artifact) for artifact in executor.run(tasks)]
    return [(point, variant) for (point, _), variant in zip(experiment.grid, merged, strict=True)]


def scaled(experiment: Experiment, joint: Variant) -> Candidates:
    """Returns a joint baseline times every λ that the merged model is tried with: one alone would be flattered."""
    factors = experiment.sweep.get("merge.lambda")
    if factors is None:
        return [({}, joint)]
    return [({"merge.lambda": factor}, replace(joint, scale=joint.scale * factor)) for factor in factors]


def pick(
    executor: Executor, experiment: Experiment, base: Base, tried: Sequence[Candidates], seed: int
) -> tuple[list[Variant], list[Point]]:
    """Returns of every variant the candidate that does best on the validation part, and how all of them did there.

    While that is not known, as in a plan, the first is taken.
    """
    if not experiment.sweep:
        return [candidates[0][1] for candidates in tried], []
    evaluators = sweep.on_validation(experiment.evaluate)
    asked = [Variant("base", "base", seed)]
    asked += [replace(each, name=_titled(each.name, point)) for candidates in tried for point, each in candidates]
    artifacts = iter(
        ask(executor, [Evaluate(variant, evaluator, base) for variant in asked for evaluator in evaluators])
    )
    files = [{evaluator.suite: next(artifacts).path / "items.parquet" for evaluator in evaluators} for _ in asked]
    if not all(file.exists() for suites in files for file in suites.values()):
        return [candidates[0][1] for candidates in tried], []
    tables = iter({suite: pl.read_parquet(file) for suite, file in suites.items()} for suites in files)
    before, chosen, points = next(tables), [], []
    for candidates in tried:
        measured = sweep.measure(
            candidates[0][1].name, seed, [(point, next(tables)) for point, _ in candidates], before, evaluators
        )
        points += measured
        chosen += [each for (_, each), point in zip(candidates, measured, strict=True) if point.picked]
    return chosen, points


def _titled(name: str, point: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{setting.removeprefix('merge.')}={value}" for setting, value in point.items())
    return f"{name} ({settings})" if settings else name


def read_subsets(
    forget: Corpus, split: Artifact, splitter: Splitter, processing: ForgetSet | None, seed: int
) -> dict[str, Corpus]:
    """Returns the rows of every subset, after the processing P, which applies to each subset apart (Algorithm 1).

    Raises:
        DataError: No subset is left, or one is smaller than `min_size` and the policy is error.
    """
    subsets: dict[str, Corpus] = {}
    for name, indices in sorted(split.manifest["subsets"].items()):
        rows = forget.select(indices)
        rows = process(rows, processing, derived_seed(seed, "sample", name)) if processing else rows
        if len(rows) >= splitter.min_size:
            subsets[name] = rows
        elif splitter.small == "error":
            raise DataError(
                f"subset {name!r} has {len(rows)} rows{_of(indices, rows)}, fewer than split.min_size "
                f"({splitter.min_size}): lower it, or set split.small to drop"
            )
    if RETAIN in subsets:
        raise DataError(f"a subset cannot be named {RETAIN!r}: that is the retain set's name; rename its rows' value")
    if not subsets:
        raise DataError("the split leaves no subset with any rows: check split, forget.where and split.min_size")
    return subsets


def process(rows: Corpus, processing: ForgetSet, seed: int) -> Corpus:
    """Applies the processing P: filter, then sample, then cut."""
    if processing.where is not None:
        rows = rows.where(processing.where)
    if processing.sample is not None and processing.sample < len(rows):
        rows = Corpus(rows.rows.sample(processing.sample, seed=seed % 2**63))
    if processing.max_rows is not None:
        rows = Corpus(rows.rows.head(processing.max_rows))
    return rows


def match_retain(retain: Corpus, split: Artifact, subsets: Mapping[str, Corpus]) -> dict[str, Corpus | None]:
    """Returns the retain rows that the same split puts into each subset."""
    indices = split.manifest["subsets"]
    missing = next((name for name in subsets if name not in indices), None)
    if missing is not None:
        raise DataError(
            f"retain.match: no retain row is in subset {missing!r}; the retain set has {', '.join(indices)}"
        )
    return {name: retain.select(indices[name]) for name in subsets}


def check_overrides(experiment: Experiment, subsets: Mapping[str, Corpus]) -> None:
    """Refuses settings for a subset that does not exist, and weights that leave none."""
    for _, merger in experiment.grid:
        for name in merger.weights:
            if name not in subsets:
                raise RecipeError(f"merge.weights.{name}: the split has no such subset; it has {', '.join(subsets)}")
        if not any(merger.weights.get(name, 1.0) for name in subsets):
            raise RecipeError("merge.weights: all are zero, so nothing would be merged")
    unknown = next((name for name in experiment.subsets if name not in subsets), None)
    if unknown is not None:
        raise RecipeError(f"subsets.{unknown}: the split has no such subset; it has {', '.join(subsets)}")


def write_items(directory: Path, evaluations: Sequence[tuple[Variant, Artifact]]) -> None:
    """Writes the one long item table that every figure and table derives from."""
    tables = [
        pl.read_parquet(artifact.path / "items.parquet").select(
            pl.lit(variant.name).alias("variant"), pl.lit(variant.seed).alias("seed"), pl.all()
        )
        for variant, artifact in evaluations
    ]
    with replaced(directory / "items.parquet") as temporary:
        pl.concat(tables).write_parquet(temporary)


def choose_device(device: str) -> str:
    """Returns the device that `auto` stands for here; refuses one that is not there."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RecipeError(f"--device {device}: not available here: {first_line(error)}") from error
    return device


def _of(indices: Sequence[int], rows: Corpus) -> str:
    return f" of {len(indices)} after processing" if len(indices) != len(rows) else ""

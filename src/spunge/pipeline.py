"""The flow: split the forget set, unlearn each subset, merge, evaluate every variant, report."""

from __future__ import annotations

import json
import platform
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import polars as pl
from filelock import FileLock, Timeout

from spunge import data, items, report, sweep
from spunge import experiment as recipe
from spunge.data import Corpus, concatenate
from spunge.errors import ArtifactError, DataError, RecipeError, SpungeError, redacted
from spunge.executors import Executor, Task
from spunge.executors.cluster import Cluster
from spunge.executors.local import Local, slots
from spunge.experiment import Experiment, ForgetSet
from spunge.interfaces import RETAIN, Evaluator, Forecast, Progress, Splitter, Work, scale_of, silent
from spunge.language_model import Resident
from spunge.report.artifacts import FORMAT
from spunge.report.results import RIVALS
from spunge.split import AtRandom
from spunge.stages import Base, Evaluate, Merge, Split, Unlearn, UnlearnInTurn, Variant, digest
from spunge.store import Artifact, Store, derived_seed, key, replace_text, replaced
from spunge.sweep import Point

Told = Callable[[str, Mapping[str, Any]], None]


def unheard(event: str, content: Mapping[str, Any], /) -> None:
    """The listener to a run's events that does not mind them."""


@dataclass
class Outcome:
    """What an experiment comes to."""

    variants: list[Variant] = field(default_factory=list)
    evaluations: list[tuple[Variant, Artifact]] = field(default_factory=list)
    """For every variant the artifacts of its evaluations."""
    points: list[Point] = field(default_factory=list)
    """Of a sweep: every setting that was tried, as it did on the validation part."""


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
        union = concatenate(rows.named(name) for name, rows in subsets.items())
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
                rows.named(name),
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
        others, drawn = [], {}
        if "joint_equal_steps" in controls:
            steps_of = tuple(variant.artifact.path for variant in [*baselines, *unlearned] if variant.artifact)
            others.append(replace(joint, name="joint_equal_steps", steps_of=steps_of))
        if "random_split" in controls:
            at_random, pooled = AtRandom(sizes=[len(rows) for rows in subsets.values()]), union.without(data.SUBSET)
            drawn = read_subsets(pooled, executor.run([Split(at_random, pooled, base, seed)])[0], at_random, None, seed)
            others += [
                Unlearn("control", name, base, experiment.unlearn, rows.named(name), retain, seed)
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
            merged.append(merge(executor, "control", "random_split", experiment, base, at_random_unlearned, fit, seed))
        rivals = [scaled(experiment, variant) for variant in baselines]
        chosen, points = pick(executor, experiment, base, [*rivals, *merged], seed)
        outcome.points += points
        baselines, merged = chosen[: len(rivals)], chosen[len(rivals) :]

        # evaluate every variant on what must go and what must stay
        mine = [Variant("base", "base", seed), *baselines, *in_turn, *unlearned, *merged]
        tasks = [(variant, Evaluate(variant, evaluator, base)) for variant in mine for evaluator in evaluators]
        artifacts = executor.run([task for _, task in tasks])
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
    told: Told = unheard,
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
        told: Told of the run's events: `planned`, with its `steps`, and `finished`, with the task that has ended.
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
    with _locked(directory):
        replace_text(directory / "recipe.yaml", redacted(recipe.dump(experiment)))
        journal = Journal(directory, experiment, device, command, told)
        store = Store(Path(out) / "store")
        where = _executor(executor, store, device, jobs, address, progress, journal.note)
        try:
            journal.write("running")
            told("planned", {"steps": planned.steps})
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


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Holds a run's directory, so that nobody else works there meanwhile."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(directory / ".lock", timeout=0)
        lock.acquire()
    except Timeout as error:
        raise ArtifactError(f"{directory}: another run is at work there; wait for it, or give another --out") from error
    except OSError as error:
        raise ArtifactError(f"{directory}: cannot be written: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


@dataclass(frozen=True)
class Rows:
    """The rows of an experiment."""

    forget: Corpus
    retain: Corpus | None
    weights: bool = True
    """Whether the model's weights must be there."""


def load(experiment: Experiment, *, weights: bool = True) -> Rows:
    """Reads an experiment's rows, once for its plan and its run; refuses evaluations whose items cannot be had.

    Args:
        experiment: The recipe.
        weights: Whether the model's weights must be there: not for a plan.

    Raises:
        DataError: A source, a column or a row is missing.
    """
    retain = data.load(experiment.retain.sources) if experiment.retain else None
    rows = Rows(data.load(experiment.forget.sources), retain, weights)
    known = experiment.evaluate
    for evaluator in [*sweep.on_test(known), *sweep.on_validation(known)] if experiment.sweep else known:
        check_items(evaluator)
    return rows


@dataclass
class Planned:
    """An executor that runs nothing but splits, and says for every other task whether and why it would run."""

    store: Store
    sized: bool = False
    """Whether to estimate what every task takes."""
    steps: list[dict[str, Any]] = field(default_factory=list)
    work: Work = field(default_factory=lambda: Work(Resident(), Path(), Path()))
    tasks: list[Task] = field(default_factory=list)
    _changed: dict[str, int] = field(default_factory=dict)

    def run(self, tasks: Sequence[Task]) -> list[Artifact]:
        """Returns what is in the store, and promises for the rest."""
        return [self._plan(task) for task in tasks]

    def _plan(self, task: Task) -> Artifact:
        inputs = task.inputs
        found = self.store.find(task.stage, inputs)
        if found is None and isinstance(task, Split):
            found = Artifact(
                Path(),
                {"key": key(task.stage, inputs), "subsets": task.names(self.work)},
                reused=False,
            )
        reused = found is not None and found.reused
        forecast, flops = self._forecast(task, reused)
        self.steps.append({
            "stage": task.stage, "name": task.name, "seed": task.seed, "key": key(task.stage, inputs),
            "status": "reused" if reused else "computed",
            "why": [] if reused else self.store.why(task.stage, inputs),
            "memory": forecast.memory, "disk": forecast.disk, "notes": forecast.notes, "flops": flops,
        })  # fmt: skip
        self.tasks.append(task)
        return found or Artifact(
            self.store.root / task.stage / key(task.stage, inputs), {"key": key(task.stage, inputs)}
        )

    def _forecast(self, task: Task, reused: bool) -> tuple[Forecast, float | None]:
        """What a task takes, as far as the method, or the model's configuration and the rows, say."""
        own, size = Forecast(), None
        if isinstance(task, Unlearn) and not reused and (not self.sized or task.base.model.has_tokenizer):
            own = task.forecast(self.work)
        if self.sized and (not reused or isinstance(task, Unlearn)):
            from spunge import sizes

            size = sizes.size_of(task, self._changed)
            self._changed[key(task.stage, task.inputs)] = size.changed if size else 0
        if size is None or reused:
            return own, None
        memory = own.memory if own.memory is not None else size.memory
        return replace(own, memory=memory, disk=own.disk if own.disk is not None else size.disk), size.flops


def plan(experiment: Experiment, *, out: str | Path = "runs") -> list[dict[str, Any]]:
    """Says for every task whether it would be reused or computed, why (the fields that differ), and what it takes."""
    planned = Planned(Store(Path(out) / "store"))
    flow(experiment, load(experiment), planned)
    return planned.steps


def forecast(
    experiment: Experiment, *, out: str | Path = "runs", device: str = "auto", memory: int | None = None
) -> list[dict[str, Any]]:
    """Returns the plan with what every task that would run takes, from the model's configuration and the rows alone.

    Each step gains `seconds` (None where it cannot be told) and `advice`: what to change where a task does not fit into
    the memory of the device, or what all of them leave not onto the disk.

    Args:
        experiment: The recipe; of its model only the configuration is read.
        out: The runs root.
        device: The torch device that is planned for.
        memory: Bytes to plan for instead of what is free on the device.
    """
    from spunge import sizes
    from spunge.steering.estimate import free_memory

    planned = Planned(Store(Path(out) / "store"), sized=True)
    flow(experiment, load(experiment, weights=False), planned)
    device = choose_device(device)
    room = memory if memory is not None else free_memory(device)
    existing = next(path for path in (Path(out).absolute(), *Path(out).absolute().parents) if path.exists())
    disk = shutil.disk_usage(existing).free
    for step, task in zip(planned.steps, planned.tasks, strict=True):
        flops = step.pop("flops")
        step["seconds"] = None if flops is None else flops / sizes.rate(device, experiment.model.dtype)
        step["advice"] = sizes.advice(task, step["memory"], room)
        disk -= step["disk"] or 0
        if disk < 0:
            step["advice"] = "the disk is full by then: give an --out with more room, or see `spunge store gc`"
    return planned.steps


def needed(out: str | Path) -> dict[str, list[str]]:
    """Returns the key of every artifact that the runs under a runs root refer to, with the runs' names.

    A run that has not ended refers to all that its recipe leads to.

    Raises:
        ArtifactError: A run is at work, or what one refers to cannot be told.
    """
    runs: dict[str, list[str]] = {}
    for file in sorted(Path(out).glob("*/recipe.yaml")):
        directory = file.parent
        with _locked(directory):
            try:
                said = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
                keys = [stage["key"] for stage in said["stages"]] if said["status"] == "done" else None
            except (OSError, ValueError, KeyError, TypeError):
                keys = None
        try:
            keys = [step["key"] for step in plan(recipe.read(file), out=out)] if keys is None else keys
        except SpungeError as error:
            raise ArtifactError(
                f"{directory}: this run has not ended, and what it needs cannot be told ({error}); "
                "call this where the run was started, finish the run, or remove its directory"
            ) from error
        for name in dict.fromkeys(keys):
            runs.setdefault(name, []).append(directory.name)
    return runs


def unlearn(executor: Executor, tasks: Sequence[Unlearn]) -> list[Variant]:
    """Runs unlearning tasks and returns their variants."""
    return [
        Variant(task.name, task.kind, task.seed, artifact, scale_of(task.unlearner))
        for task, artifact in zip(tasks, executor.run(tasks), strict=True)
    ]


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
) -> Candidates:
    """Merges variants into one, under every setting of the sweep; `rows` are for mergers that fit their inputs."""
    fitted_on = {name: each for name, each in rows.items() if each is not None}
    tasks = [
        Merge(_titled(name, point), merger, base, tuple(variants), seed, fitted_on if merger.needs().grams else {})
        for point, merger in experiment.grid
    ]
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
        executor.run([Evaluate(variant, evaluator, base) for variant in asked for evaluator in evaluators])
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


def check_items(evaluator: Evaluator) -> None:
    """Refuses an evaluation whose items cannot be had, before hours of training rather than after.

    Raises:
        DataError: A source, a column or a row is missing.
    """
    known = type(evaluator).model_fields
    if {"sources", "attributes", "where"} <= known.keys():
        asked = {name: getattr(evaluator, name) for name in ("attributes", "where", "limit", "part") if name in known}
        items.load(getattr(evaluator, "sources"), **asked)  # noqa: B009


def check_overrides(experiment: Experiment, subsets: Mapping[str, Corpus]) -> None:
    """Refuses settings for a subset that does not exist."""
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


@dataclass
class Journal:
    """The run's manifest: what ran, on what, with which result; rewritten after every task."""

    directory: Path
    experiment: Experiment
    device: str
    command: str
    told: Told = unheard
    stages: list[dict[str, Any]] = field(default_factory=list)
    split: dict[str, Any] | None = None
    subsets: dict[str, int] = field(default_factory=dict)
    merges: dict[str, Any] = field(default_factory=dict)
    devices: Counter[str] = field(default_factory=Counter)
    """Kind of device → how many artifacts were made on it."""

    def note(self, task: Task, artifact: Artifact) -> None:
        """Notes a finished task."""
        manifest = artifact.manifest
        if isinstance(task, Unlearn | Evaluate) and "device" in manifest:
            self.devices[manifest["device"].partition(":")[0]] += 1
        self.stages.append({
            "stage": task.stage, "name": task.name, "seed": task.seed, "key": artifact.key,
            "status": "reused" if artifact.reused else "computed",
            "seconds": manifest.get("seconds"), "peak_memory": manifest.get("peak_memory"),
            "path": f"../store/{task.stage}/{artifact.key}",
        })  # fmt: skip
        if isinstance(task, Split) and self.split is None:
            self.split = self._split(task, manifest["subsets"])
        if isinstance(task, Unlearn) and task.name.startswith("subset:"):
            self.subsets[task.name.removeprefix("subset:")] = len(task.forget)
        if isinstance(task, Merge) and task.name == "spunge":  # of a sweep, the picked one is noted at the end
            self.merges[str(task.seed)] = manifest["diagnostics"]
        self.write("running")
        asked = {"variant": task.variant.name, "suite": task.evaluator.suite} if isinstance(task, Evaluate) else {}
        self.told("finished", {**self.stages[-1], **asked, "figures": manifest.get("figures", {})})

    def write(self, status: str, outcome: Outcome | None = None, warnings: Sequence[str] = ()) -> None:
        """Writes manifest.json."""
        outcome = outcome or Outcome()
        for variant in outcome.variants:
            if variant.kind == "merged" and variant.artifact is not None:
                self.merges[str(variant.seed)] = variant.artifact.manifest["diagnostics"]
        experiment = self.experiment
        manifest = {
            "format": FORMAT, "experiment": experiment.name, "description": experiment.description, "status": status,
            "version": metadata.version("spunge"), "command": self.command,
            "model": {**experiment.model.model_dump(include={"id", "revision"}), "digest": digest(experiment.model)},
            "seeds": experiment.seeds,
            "suites": [evaluator.described for evaluator in experiment.evaluate],
            "split": self._settled(), "variants": [_described(variant) for variant in outcome.variants],
            "stages": self.stages, "merge": self.merges, "search": getattr(experiment.unlearn, "trials", []),
            "sweep": sweep.described(experiment.sweep, sweep.on_validation(experiment.evaluate), outcome.points),
            "environment": environment(self.device),
            "warnings": [*self._cautions(), *warnings], "not_run": self._not_run(),
        }  # fmt: skip
        replace_text(self.directory / "manifest.json", redacted(json.dumps(manifest, indent=1, ensure_ascii=False)))

    def _not_run(self) -> list[str]:
        """What an experiment can ask and this one did not, lest a reader take silence for a result."""
        missing = [
            f"{name.replace('_', ' ')}: not among the recipe's controls"
            for name in RIVALS
            if name not in self.experiment.controls
        ]
        if not any("attacks" in evaluator.described for evaluator in self.experiment.evaluate):
            missing.append("attacks (quantisation, relearning): no suite of the recipe is one")
        return missing

    def _cautions(self) -> list[str]:
        """What a reader of the comparisons must know of the recipe."""
        cautions = []
        factor = self.experiment.merge.lambda_
        swept = "merge.lambda" in self.experiment.sweep
        if factor != 1.0 and not swept and {"joint", "joint_equal_steps"} & set(self.experiment.controls):
            cautions.append(
                f"The merged model's task vector is scaled by λ = {factor:g}, the joint baselines' are not: "
                "a difference between them may be one of scale."
            )
        if len(self.devices) > 1:
            made = ", ".join(f"{count} on {device}" for device, count in self.devices.most_common())
            cautions.append(
                f"Results were computed on different kinds of device ({made}), which round differently: "
                "small differences between variants may come from that."
            )
        return cautions

    def _split(self, task: Split, subsets: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        counted = [0] * len(task.forget)
        for indices in subsets.values():
            for index in indices:
                counted[index] += 1
        return {
            "attribute": getattr(task.splitter, "column", None) or getattr(task.splitter, "by", task.name),
            "rows": len(task.forget), "covered": sum(count > 0 for count in counted),
            "overlapping": sum(count > 1 for count in counted),
            "found": {name: len(indices) for name, indices in sorted(subsets.items())},
        }  # fmt: skip

    def _settled(self) -> dict[str, Any] | None:
        """The split with what the processing left of each subset."""
        if self.split is None:
            return None
        dropped = {
            name: rows for name, rows in self.split["found"].items() if self.subsets and name not in self.subsets
        }
        return {
            **self.split,
            "subsets": [{"name": name, "rows": rows} for name, rows in self.subsets.items()],
            "dropped": [{"name": name, "rows": rows, "reason": "under min_size"} for name, rows in dropped.items()],
        }


def environment(device: str) -> dict[str, Any]:
    """Returns the versions and the device that results were computed with."""
    packages = ("spunge", "torch", "transformers", "peft", "safetensors", "polars")
    return {
        "python": platform.python_version(), **{package: metadata.version(package) for package in packages},
        "platform": platform.platform(terse=True), "device": device,
    }  # fmt: skip


def choose_device(device: str) -> str:
    """Returns the device that `auto` stands for here; refuses one that is not there."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RecipeError(f"--device {device}: not available here: {str(error).splitlines()[0]}") from error
    return device


def _described(variant: Variant) -> dict[str, Any]:
    artifact = variant.artifact
    return {
        "name": variant.name, "kind": variant.kind, "subset": variant.subset, "seed": variant.seed,
        "norm": artifact.manifest.get("norm") if artifact else None,
        "steps": artifact.manifest.get("steps") if artifact else None,
        "task_vector": f"../store/{artifact.manifest['stage']}/{artifact.key}" if artifact else None,
    }  # fmt: skip


def _of(indices: Sequence[int], rows: Corpus) -> str:
    return f" of {len(indices)} after processing" if len(indices) != len(rows) else ""

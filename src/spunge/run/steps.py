"""The steps of the flow for one seed: each says which tasks it comes to, and hands what they made to the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import polars as pl

from spunge.evaluators.attacks import Attack
from spunge.interfaces import RETAIN, Evaluator, Merger, strength_of
from spunge.recipe.schema import Experiment
from spunge.rows.items import Focus, RowSettings
from spunge.rows.sources import SUBSET, Corpus, concatenate, take_turns
from spunge.run import sweep
from spunge.run.anchor import AnchorToRetain
from spunge.run.damage import MatchDamage, described
from spunge.run.evaluate import Evaluate, Generate, Score
from spunge.run.executors import Executor, Task
from spunge.run.fitting import FitWeights
from spunge.run.keys import key
from spunge.run.merge import Merge
from spunge.run.split import Split
from spunge.run.store import Artifact
from spunge.run.subsets import Rows, Subsets, check_settings_of_subsets, match_retain, process, read_subsets
from spunge.run.sweep import Point
from spunge.run.unlearn import Unlearn, UnlearnInTurn
from spunge.run.variant import Base, Published, Variant
from spunge.splitters import AtRandom
from spunge.variants import ELSEWHERE, LAYERED, ORACLE


@dataclass(frozen=True)
class Context:
    """What all steps of one seed share."""

    experiment: Experiment
    rows: Rows
    executor: Executor
    seed: int

    @property
    def base(self) -> Base:
        """The base model, as far as it must be there."""
        return Base(self.experiment.model, self.rows.weights)


def oracle(context: Context) -> list[Variant]:
    """Returns the model that never knew, where the recipe names one: asked like the base, and compared with nobody."""
    model = context.experiment.oracle
    if model is None:
        return []
    never_knew = Published.of(ORACLE.name, ORACLE.kind, model, context.base, context.seed)
    if context.base.weights:
        never_knew.change()  # that it is of this base is known before anything is paid for
    return [never_knew]


def split(context: Context) -> Subsets:
    """Splits the forget set by the attribute, and the retain set likewise where the recipe matches the two."""
    experiment, forget, retain, seed = context.experiment, context.rows.forget, context.rows.retain, context.seed
    [artifact] = context.executor.run([Split(experiment.split, forget, context.base, seed)])
    rows = read_subsets(forget, artifact, experiment.split, experiment.forget, seed)
    check_settings_of_subsets(experiment, [*rows])
    matched: Mapping[str, Corpus | None] = dict.fromkeys(rows, retain)
    if experiment.retain and experiment.retain.match and retain is not None:
        [artifact] = context.executor.run([Split(experiment.split, retain, context.base, seed)])
        matched = match_retain(retain, artifact, [*rows])
    return Subsets(rows, matched, {name: name for name in rows})


def split_at_random(context: Context, subsets: Subsets) -> Subsets:
    """Splits the subsets' rows anew, at random into parts of the same sizes."""
    splitter = AtRandom(sizes=[len(rows) for rows in subsets.rows.values()])
    pooled = Corpus(subsets.union.rows.drop(SUBSET))
    [artifact] = context.executor.run([Split(splitter, pooled, context.base, context.seed)])
    rows = read_subsets(pooled, artifact, splitter, None, context.seed)
    stand_for = dict(zip(subsets.rows, splitter.names, strict=True))
    return Subsets(rows, dict.fromkeys(rows, context.rows.retain), stand_for)


def subset_tasks(context: Context, subsets: Subsets, *, others: bool = True) -> list[Unlearn]:
    """Returns the tasks that unlearn every subset apart, each by the method with its own settings.

    Args:
        context: The seed's.
        subsets: What each unlearns and retains.
        others: Whether they retain each other where the recipe says so.
    """
    return [
        Unlearn(
            kind="subset",
            name=f"subset:{name}",
            base=context.base,
            unlearner=context.experiment.subset_unlearner(name),
            forget=rows.with_subset(name),
            retain=_retain(context, subsets, name) if others else subsets.retain[name],
            seed=context.seed,
        )
        for name, rows in subsets.rows.items()
    ]


def _retain(context: Context, subsets: Subsets, name: str) -> Corpus | None:
    """What must stay while one subset goes: its retain rows and, if the recipe says so, every other subset's rows."""
    retain, settings = subsets.retain[name], context.experiment.retain
    if retain is None or settings is None or not settings.others:
        return retain
    parts = [rows.without(subsets.rows[name]) for other, rows in subsets.rows.items() if other != name]
    others = [rows for rows in parts if len(rows)]
    return take_turns([retain, take_turns(others)]) if others else retain


def random_tasks(context: Context, subsets: Subsets) -> list[Unlearn]:
    """Returns the tasks that unlearn what was drawn at random, by the method as the recipe has it."""
    return [
        Unlearn(
            kind="control",
            name=name,
            base=context.base,
            unlearner=context.experiment.unlearn,
            forget=rows.with_subset(name),
            retain=_retain(context, subsets, name),
            seed=context.seed,
        )
        for name, rows in subsets.rows.items()
    ]


def joint_task(context: Context, subsets: Subsets) -> Unlearn:
    """Returns the task that unlearns all at once, as everybody does it."""
    experiment = context.experiment
    union = experiment.joint.data == "union"
    return Unlearn(
        kind="joint",
        name="joint",
        base=context.base,
        unlearner=experiment.joint_unlearner,
        forget=subsets.union if union else process(context.rows.forget, experiment.forget, context.seed),
        retain=context.rows.retain,
        seed=context.seed,
    )


STANDS_FOR_BOTH = (
    "The joint baseline takes as many steps as all subsets together as it is: its model is also the one of equal steps."
)


def takes_all_steps(joint: Variant, subsets: Sequence[Variant]) -> bool:
    """Whether the joint baseline takes as many steps as all subsets; False while that is not known, as in a plan."""
    artifacts = [variant.artifact for variant in [joint, *subsets] if variant.artifact is not None]
    taken, *others = (artifact.manifest.get("steps", 0) for artifact in artifacts)
    return 0 < taken >= sum(others) and all(others)


def longer_task(joint: Unlearn, variants: Sequence[Variant]) -> Unlearn:
    """Returns the task that unlearns all at once, in as many steps as the subsets took together.

    Args:
        joint: The task of the joint baseline.
        variants: That baseline, then the subsets.
    """
    paths = tuple(variant.artifact.path for variant in variants if variant.artifact is not None)
    return replace(joint, name="joint_equal_steps", steps_of=paths)


def unlearn(context: Context, *tasks: Sequence[Unlearn]) -> list[list[Variant]]:
    """Runs lists of tasks, all of them at once as none needs another, and returns the variants of each list."""
    artifacts = iter(context.executor.run([task for some in tasks for task in some]))
    return [[_variant(task, next(artifacts)) for task in some] for some in tasks]


def _variant(task: Unlearn, artifact: Artifact) -> Variant:
    scale, negated = strength_of(task.unlearner), task.unlearner.scaled_by is not None
    return Variant(task.name, task.kind, task.seed, artifact, scale=scale, negated=negated)


def unlearn_in_turn(context: Context, subsets: Subsets) -> Variant:
    """Unlearns one subset after the other, each from what the one before left; nothing is merged.

    They do not retain each other, whatever the recipe says: each would teach anew what the one before took away.
    """
    tasks = subset_tasks(context, subsets, others=False)
    [artifact] = context.executor.run([UnlearnInTurn(tuple(tasks), context.seed)])
    return Variant("sequential", "control", context.seed, artifact)


def unlearn_in_layers(context: Context, subsets: Subsets, apart: Sequence[Unlearn], done: Sequence[Variant]) -> Variant:
    """Unlearns the first subset, then the first two, and so on, while what has not had its turn yet is retained.

    Layered unlearning (arXiv 2505.09500), at the cost of the split: each layer takes as many steps as its newest subset
    took alone.

    Args:
        context: The seed's.
        subsets: What goes, in the order of their names.
        apart: The tasks that unlearn every subset apart.
        done: What these tasks came to.
    """
    layers: list[Unlearn] = []
    names = [*subsets.rows]
    for number, (task, variant) in enumerate(zip(apart, done, strict=True), 1):
        forget = concatenate(subsets.rows[name].with_subset(name) for name in names[:number])
        later = [rows for name in names[number:] if len(rows := subsets.rows[name].without(forget))]
        kept = [] if context.rows.retain is None else [context.rows.retain]
        kept += [take_turns(later)] if later else []
        assert variant.artifact is not None, "a subset's variant is of its task"
        taken = (variant.artifact.path,) * 2  # as many steps as it took, of itself
        layers.append(replace(task, forget=forget, retain=take_turns(kept) if kept else None, steps_of=taken))
    [artifact] = context.executor.run([UnlearnInTurn(tuple(layers), context.seed, LAYERED.name)])
    return Variant(LAYERED.name, "control", context.seed, artifact)


Candidates = list[tuple[Mapping[str, Any], Variant]]
"""One variant under every setting of the sweep; without a sweep under the recipe's own alone."""


def merge(context: Context, name: str, variants: Sequence[Variant], subsets: Subsets) -> Candidates:
    """Merges the variants of some subsets into one, under every setting of the sweep."""
    kind = "merged" if name == "spunge" else "control"
    retain = {} if context.rows.retain is None else {RETAIN: context.rows.retain}
    tasks = []
    for point, settings in context.experiment.grid:
        merger = _weighing(settings, subsets)
        fitted_on = {**subsets.rows, **retain} if merger.needs().grams else {}
        tasks.append(Merge(_titled(name, point), merger, context.base, tuple(variants), context.seed, fitted_on))
    tasks = _fitted(context, tasks)
    merged = [Variant(name, kind, context.seed, artifact) for artifact in context.executor.run(tasks)]
    points = [point for point, _ in context.experiment.grid]
    return list(zip(points, anchor(context, merged), strict=True))


def anchor(context: Context, variants: Sequence[Variant]) -> list[Variant]:
    """Anchors variants to the retain set where the recipe says so; each keeps its λ."""
    settings, retain = context.experiment.anchor, context.rows.retain
    if settings is None or retain is None:
        return [*variants]
    tasks = [AnchorToRetain(one, settings, retain, context.base) for one in variants]
    artifacts = _run_each_once(context.executor, tasks)
    return [replace(one, artifact=artifact) for one, artifact in zip(variants, artifacts, strict=True)]


def _fitted(context: Context, merges: Sequence[Merge]) -> list[Merge]:
    """Merges with weights in the place of `fitted`; while these are not known, as in a plan, all are 1."""
    texts, suite = context.rows.damage, context.experiment.damage_suite
    unweighed = [merge for merge in merges if merge.merger.fits_weights]
    if not unweighed:
        return [*merges]
    assert context.experiment.damage is not None, "a recipe that fits weights says at which damage"
    asked, near = tuple(sweep.of_what_must_go(context.experiment)), None if suite or texts is None else texts.near
    fits = [FitWeights(merge, context.experiment.damage, near, suite, asked) for merge in unweighed]
    chosen = {
        fit.merge.name: artifact.manifest.get("weights", {})
        for fit, artifact in zip(fits, context.executor.run(fits), strict=True)
    }
    return [
        replace(merge, merger=merge.merger.model_copy(update={"weights": chosen[merge.name]}))
        if merge.name in chosen else merge
        for merge in merges
    ]  # fmt: skip


def _weighing(merger: Merger, subsets: Subsets) -> Merger:
    """A merger whose weights name the subsets that stand for those of the recipe."""
    weights = {subsets.stand_for[name]: weight for name, weight in merger.named_weights.items()}
    return merger if weights == merger.named_weights else merger.model_copy(update={"weights": weights})


def scaled(context: Context, joint: Variant) -> Candidates:
    """Returns a joint baseline times every λ that the merged model is tried with: one alone would be flattered."""
    factors = context.experiment.sweep.get("merge.lambda")
    if factors is None:
        return [({}, joint)]
    return [({"merge.lambda": factor}, replace(joint, scale=joint.scale * factor)) for factor in factors]


def pick(context: Context, tried: Sequence[Candidates]) -> tuple[list[Variant], list[Point]]:
    """Returns of every variant the candidate that does best on the validation part, and how all of them did there.

    While that is not known, as in a plan, the first is taken.
    """
    first = [candidates[0][1] for candidates in tried]
    if not context.experiment.sweep:
        return first, []
    evaluators = sweep.on_validation(context.experiment)
    variants = [Variant("base", "base", context.seed)]
    variants += [replace(variant, name=_titled(variant.name, point)) for some in tried for point, variant in some]
    tasks = [Evaluate(variant, evaluator, context.base) for variant in variants for evaluator in evaluators]
    artifacts = iter(evaluated(context.executor, tasks))
    files = [{evaluator.suite: next(artifacts).path / "items.parquet" for evaluator in evaluators} for _ in variants]
    if not all(file.exists() for suites in files for file in suites.values()):
        return first, []
    tables = iter({suite: pl.read_parquet(file) for suite, file in suites.items()} for suites in files)
    before, picked, points = next(tables), [], []
    for candidates in tried:
        answers = [(point, next(tables)) for point, _ in candidates]
        measured = sweep.measure(candidates[0][1].name, context.seed, answers, before, evaluators)
        points += measured
        picked += [variant for (_, variant), point in zip(candidates, measured, strict=True) if point.picked]
    return picked, points


@dataclass
class Matched:
    """Variants brought to the same damage, and what a run's manifest notes of how they came to it."""

    variants: list[list[Variant]]
    """Those to match, at the λ that does the damage of the headline budget."""
    elsewhere: list[Variant] = field(default_factory=list)
    """The same at other points of their curves, for the forget suites alone."""
    matches: list[Mapping[str, Any]] = field(default_factory=list)
    curve: list[Mapping[str, Any]] = field(default_factory=list)
    points: list[Mapping[str, Any]] = field(default_factory=list)
    """Which variant each of `elsewhere` is, and at which point."""


def match_damage(context: Context, *compared: Sequence[Variant]) -> Matched:
    """Brings lists of variants to the damage of the headline budget, and to the other points that the recipe asks for.

    While it is not known where that is, as in a plan, they stay as they are; without budgets anyway.
    """
    damage, texts = context.experiment.damage, context.rows.damage
    if damage is None or texts is None:
        return Matched([list(variants) for variants in compared])
    suite, variants = context.experiment.damage_suite, [variant for some in compared for variant in some]
    measured = None if suite else texts.near
    told = None if suite else texts.far
    tasks = [
        MatchDamage(variant, damage, tuple(damage.budgets), measured, told, context.base, suite) for variant in variants
    ]
    far = [
        MatchDamage(variant, damage, (damage.headline,), texts.far, measured, context.base)
        for variant in variants if "far" in damage.also
    ]  # fmt: skip
    artifacts = iter(_run_each_once(context.executor, [*tasks, *far]))
    near_of = {variant.name: next(artifacts).manifest for variant in variants}
    far_of = {task.name: next(artifacts).manifest for task in far}
    matched = Matched(
        [[_matched(variant, near_of[variant.name], damage.headline) for variant in some] for some in compared]
    )
    for variant in variants:
        if "matches" in near_of[variant.name]:
            matches, curve = described(variant, near_of[variant.name], "near")
            matched.matches += matches
            matched.curve += curve
        if "matches" in far_of.get(variant.name, {}):
            matched.matches += described(variant, far_of[variant.name], "far")[0]
        for point in damage.also:
            matching = point if isinstance(point, str) else "near"
            budget = damage.headline if isinstance(point, str) else point
            name = f"{variant.name} @ {'own' if matching == 'own' else f'{matching} {budget:g}'}"
            there = replace(variant, name=name, kind=ELSEWHERE)
            if matching != "own":
                there = _matched(there, (far_of if matching == "far" else near_of)[variant.name], budget)
            matched.elsewhere.append(there)
            matched.points.append({
                "variant": variant.name, "seed": variant.seed, "name": name, "matching": matching, "budget": budget,
                "scale": there.scale / variant.scale,
            })  # fmt: skip
    return matched


def _matched(variant: Variant, manifest: Mapping[str, Any], budget: float) -> Variant:
    """A variant at the λ that its task found for a budget; as it is while that is not known."""
    spent = next((match for match in manifest.get("matches", ()) if match["budget"] == budget), None)
    return variant if spent is None else replace(variant, scale=variant.scale * spent["scale"])


def evaluate(
    context: Context, variants: Sequence[Variant], elsewhere: Sequence[Variant] = ()
) -> list[tuple[Variant, Artifact]]:
    """Asks every variant every suite and attack, and variants elsewhere on their curves the suites of what must go."""
    asked = sweep.reported(context.experiment)
    forget = [suite for suite in asked if suite.goal == "forget"]
    suites = [*asked, *context.rows.robustness.attacks]
    tasks = [
        Evaluate(variant, _as_asked(context.experiment, suite, variant), context.base)
        for variant in variants
        for suite in suites
    ]
    tasks += [Evaluate(variant, suite, context.base) for variant in elsewhere for suite in forget]
    return [(task.variant, artifact) for task, artifact in zip(tasks, evaluated(context.executor, tasks), strict=True)]


def _as_asked(experiment: Experiment, suite: Evaluator, variant: Variant) -> Evaluator:
    """A suite as it is asked of a variant, attacked too: of a model of one subset what is about it, and a sample."""
    if isinstance(suite, Attack):
        return suite.model_copy(update={"of": _as_asked(experiment, suite.of, variant)})
    if variant.subset is None or experiment.ask_subsets == "all" or not isinstance(suite, RowSettings):
        return suite
    focus = Focus(value=variant.subset, attributes=suite.attribute_columns, needed=suite.goal == "forget")
    return suite.model_copy(update={"focus": focus}) if suite.in_part else suite


def evaluated(executor: Executor, tasks: Sequence[Evaluate]) -> list[Artifact]:
    """Runs evaluations; before those in steps, all that their variants write, then all that scorers say of it."""
    writing = {
        number: Generate(task.variant, generation, task.base, task.evaluator.suite)
        for number, task in enumerate(tasks)
        if (generation := task.evaluator.generation) is not None
    }
    steps = {
        number: [artifact]
        for number, artifact in zip(writing, _run_each_once(executor, [*writing.values()]), strict=True)
    }
    scoring = [
        (number, Score(scorer, steps[number][0], generate))
        for number, generate in writing.items()
        for scorer in tasks[number].evaluator.scorers
    ]
    for (number, _), artifact in zip(scoring, _run_each_once(executor, [task for _, task in scoring]), strict=True):
        steps[number].append(artifact)
    return _run_each_once(
        executor, [replace(task, steps=tuple(steps.get(number, ()))) for number, task in enumerate(tasks)]
    )


def _run_each_once(executor: Executor, tasks: Sequence[Task]) -> list[Artifact]:
    """Runs tasks of which some come to the same artifact, as variants with equal weights do: each of those once."""
    keys = [key(task.stage, task.inputs) for task in tasks]
    different: dict[str, Task] = {}
    for name, task in zip(keys, tasks, strict=True):
        different.setdefault(name, task)
    artifacts = dict(zip(different, executor.run([*different.values()]), strict=True))
    return [artifacts[name] for name in keys]


def _titled(name: str, point: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{setting.removeprefix('merge.')}={value}" for setting, value in point.items())
    return f"{name} ({settings})" if settings else name

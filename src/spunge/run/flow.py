"""The flow: split the forget set, unlearn each subset, merge, evaluate every variant. Each step is in `steps`.

A run and a plan both walk it, the one with an executor that makes what is missing, the other with one that says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from spunge.recipe.schema import Experiment
from spunge.run import steps
from spunge.run.cautions import cautions_of_rows, cautions_of_subsets
from spunge.run.executors import Executor
from spunge.run.executors.planned import Planned
from spunge.run.journal import Outcome
from spunge.run.store import Store
from spunge.run.subsets import Rows, load
from spunge.run.variant import Variant


def foresee(
    experiment: Experiment,
    store: Store,
    device: str,
    warn: Callable[[Sequence[str]], object],
    *,
    weights: bool = True,
) -> tuple[Rows, Planned]:
    """Walks the flow without running it: with this a run begins, and a plan is no more than this.

    Args:
        experiment: The recipe.
        store: What is there already.
        device: Where a split that asks a model computes.
        warn: Told what to know before anything is paid for, as soon as it is known.
        weights: Whether the model's weights must be there: not for a plan.

    Returns:
        The rows, and every task with whether and why it would run.

    Raises:
        SpungeError: Something is missing or wrong.
    """
    rows = load(experiment, weights=weights)
    with Planned(store, device) as planned:
        if cautions := cautions_of_rows(experiment, rows):
            warn(cautions)
        flow(experiment, rows, planned)
    if cautions := cautions_of_subsets(planned.tasks):
        warn(cautions)
    return rows, planned


def flow(experiment: Experiment, rows: Rows, executor: Executor) -> Outcome:
    """The whole experiment: every step in order, each built from the artifacts of the one before.

    What does not depend on each other is run at once, so that several processes are kept busy.

    Args:
        experiment: The recipe.
        rows: Its rows, from `subsets.load`.
        executor: Runs the tasks, or only says what it would run.

    Returns:
        The variants, and what they were evaluated to.
    """
    controls = set(experiment.controls) - experiment.left_out.keys()
    outcome = Outcome()
    for seed in experiment.seeds:
        context = steps.Context(experiment, rows, executor, seed)

        # split
        subsets = steps.split(context)

        # unlearn every subset apart, always from the base; and, as everybody does it, all of them jointly
        apart, joint = steps.subset_tasks(context, subsets), steps.joint_task(context, subsets)
        jointly = [joint] if {"joint", "joint_equal_steps"} & controls else []
        unlearned, baselines = steps.unlearn(context, apart, jointly)

        # the controls: joint with as many steps as all subsets together, these in turn or in layers, a split at random
        prolong, longer = "joint_equal_steps" in controls, []
        if prolong and not steps.takes_all_steps(baselines[0], unlearned):
            longer = [steps.longer_task(joint, [*baselines, *unlearned])]
        random = steps.split_at_random(context, subsets) if "random_split" in controls else None
        drawn = steps.random_tasks(context, random) if random else []
        prolonged, unlearned_at_random = steps.unlearn(context, longer, drawn)
        if prolong and not longer:
            prolonged = [replace(baselines[0], name="joint_equal_steps")]
            outcome.notes.append(steps.STANDS_FOR_BOTH)
        in_turn = [steps.unlearn_in_turn(context, subsets)] if "sequential" in controls else []
        if "layered" in controls:
            in_turn.append(steps.unlearn_in_layers(context, subsets, apart, unlearned))
        in_turn = steps.anchor(context, in_turn)

        # merge; of a sweep's settings each variant takes the one that does best on the validation part of the items
        rivals = [steps.scaled(context, variant) for variant in steps.anchor(context, [*baselines, *prolonged])]
        tried = [steps.merge(context, "spunge", unlearned, subsets)]
        if random:
            tried.append(steps.merge(context, "random_split", unlearned_at_random, random))
        picked, points = steps.pick(context, [*rivals, *tried])

        # bring all that are compared to the same damage, where the recipe says how much
        matched = steps.match_damage(context, picked[: len(rivals)], picked[len(rivals) :], in_turn)
        baselines, merged, in_turn = matched.variants

        # evaluate every variant on what must go and what must stay
        base = Variant("base", "base", seed)
        variants = [base, *steps.oracle(context), *baselines, *in_turn, *unlearned, *merged]
        outcome.evaluations += steps.evaluate(context, variants, matched.elsewhere)
        outcome.variants += [*variants, *matched.elsewhere]
        outcome.points += points
        outcome.matches += matched.matches
        outcome.curve += matched.curve
        outcome.elsewhere += matched.points
    return outcome

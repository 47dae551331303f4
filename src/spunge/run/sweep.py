"""Sweeps: what a grid of merges forgot and kept on the validation part of the items, and which of them is picked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from spunge.interfaces import Evaluator
from spunge.recipe.schema import Experiment
from spunge.rows.items import VALIDATION_SHARE, ItemTable, mean_values

RULE = "the largest retain − forget on the validation part; of equals the first"


@dataclass(frozen=True)
class Point:
    """One setting of a sweep, as it did on the validation part."""

    variant: str
    seed: int
    settings: Mapping[str, Any]
    """`merge.density` and so on; for a joint baseline λ alone."""
    forget: float
    """What is left of the base model's score on what must go, averaged over the forget suites: 0 is gone, 1 is all."""
    retain: float
    """What is kept of the base model's score on what must stay, likewise."""
    suites: Mapping[str, float]
    """Suite → the headline metric on the validation part."""
    picked: bool = False
    front: bool = False
    """Whether no other setting of this variant and seed forgets at least as much and keeps more, or the reverse."""


def on_validation(experiment: Experiment) -> list[Evaluator]:
    """Returns the evaluators that a sweep is picked on: those whose items have parts, on the validation part.

    Where the loss of a suite says how much damage λ may do, it is the half of that part on which λ is not chosen.
    """
    part = "validation" if experiment.damage_suite is None else "tune"
    return [evaluator.model_copy(update={"part": part}) for evaluator in experiment.evaluate if _parted(evaluator)]


def of_what_must_go(experiment: Experiment) -> list[Evaluator]:
    """Returns the forget suites that merge weights are chosen on, on the part of their items that no table shows."""
    return [evaluator for evaluator in on_validation(experiment) if evaluator.goal == "forget"]


def reported(experiment: Experiment) -> Sequence[Evaluator]:
    """Returns the evaluators that the tables are from: on the test part, where anything is picked on the others."""
    if not experiment.sweep and not experiment.fits_weights and experiment.damage_suite is None:
        return experiment.evaluate
    return [
        evaluator.model_copy(update={"part": "test"}) if _parted(evaluator) else evaluator
        for evaluator in experiment.evaluate
    ]


def measure(
    variant: str,
    seed: int,
    candidates: Sequence[tuple[Mapping[str, Any], Mapping[str, ItemTable]]],
    base: Mapping[str, ItemTable],
    evaluators: Sequence[Evaluator],
) -> list[Point]:
    """Returns the points of one variant, with the picked one and the front marked.

    Args:
        variant: Whose settings these are.
        seed: The run's seed.
        candidates: Settings, and suite → items of the validation part.
        base: The base model's items.
        evaluators: Those that the items are of.
    """
    points = []
    for settings, tables in candidates:
        scores = {evaluator.suite: score_of(tables[evaluator.suite], evaluator) for evaluator in evaluators}
        shares: dict[str, list[float]] = {"forget": [], "retain": []}
        for evaluator in evaluators:
            share = share_left(evaluator, scores[evaluator.suite], score_of(base[evaluator.suite], evaluator))
            if share is not None:
                shares[evaluator.goal].append(share)
        # Nine digits, so that equals are equal however they were summed.
        forget, retain = (round(sum(parts) / len(parts), 9) if parts else 1.0 for parts in shares.values())
        points.append(Point(variant, seed, dict(settings), forget, retain, scores))
    best = max(range(len(points)), key=lambda index: (round(points[index].retain - points[index].forget, 9), -index))
    return [
        replace(point, picked=index == best, front=not any(_beats(other, point) for other in points))
        for index, point in enumerate(points)
    ]


def share_left(evaluator: Evaluator, score: float, base: float) -> float | None:
    """Returns what is left of what must go, or kept of what must stay; None where the base's score is no measure."""
    if not math.isfinite(score):
        # A model that answers with NaN has not been shown to forget, and has kept nothing.
        return 1.0 if evaluator.goal == "forget" else 0.0
    # More is more of what was asked for, but for figures that rise as it goes, such as a perplexity.
    rising = evaluator.headline.higher_is_better(evaluator.goal) == (evaluator.goal == "retain")
    part, whole = (score, base) if rising else (base, score)
    return part / whole if whole > 0 and math.isfinite(part) else None


def described(axes: Mapping[str, Sequence[Any]], evaluators: Sequence[Evaluator], points: Sequence[Point]) -> Any:
    """Returns the `sweep` section of a run's manifest and of `results.json`."""
    if not points:
        return None
    return {
        "axes": {name: list(values) for name, values in axes.items()},
        "rule": RULE,
        "validation_share": VALIDATION_SHARE,
        "suites": {
            evaluator.suite: {"metric": evaluator.headline.name, "goal": evaluator.goal} for evaluator in evaluators
        },
        "points": [asdict(point) for point in points],
    }


def _parted(evaluator: Evaluator) -> bool:
    return "part" in type(evaluator).model_fields


def _beats(one: Point, other: Point) -> bool:
    no_worse = one.retain >= other.retain and one.forget <= other.forget
    return no_worse and (one.retain > other.retain or one.forget < other.forget)


def score_of(items: ItemTable, evaluator: Evaluator) -> float:
    """Returns the mean of a suite's headline metric; NaN where it could not be measured."""
    metric = evaluator.headline.name
    return mean_values(items, [metric]).get(metric, math.nan)

"""Sweeps: what a grid of merges forgot and kept on the validation part of the items, and which of them is picked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from spunge.interfaces import Evaluator
from spunge.report.findings import Column
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


def on_validation(evaluators: Sequence[Evaluator]) -> list[Evaluator]:
    """Returns the evaluators that a sweep is picked on: those whose items have parts, on the validation part."""
    return [evaluator.model_copy(update={"part": "validation"}) for evaluator in evaluators if _parted(evaluator)]


def on_test(evaluators: Sequence[Evaluator]) -> list[Evaluator]:
    """Returns the evaluators that the tables are from: on the test part, if their items have parts."""
    return [each.model_copy(update={"part": "test"}) if _parted(each) else each for each in evaluators]


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
        scores = {evaluator.suite: _score(tables[evaluator.suite], _headline(evaluator)) for evaluator in evaluators}
        shares: dict[str, list[float]] = {"forget": [], "retain": []}
        for evaluator in evaluators:
            before = _score(base[evaluator.suite], _headline(evaluator))
            # Left of what must go, kept of what must stay: less is worse for the latter, and is it for the former?
            rising = _higher_is_better(evaluator) == (evaluator.goal == "retain")
            one, other = (scores[evaluator.suite], before) if rising else (before, scores[evaluator.suite])
            if not math.isfinite(scores[evaluator.suite]):
                # A model that answers with NaN has not been shown to forget, and has kept nothing.
                shares[evaluator.goal].append(1.0 if evaluator.goal == "forget" else 0.0)
            elif other > 0 and math.isfinite(one):
                shares[evaluator.goal].append(one / other)
        # Nine digits, so that equals are equal however they were summed.
        forget, retain = (round(sum(each) / len(each), 9) if each else 1.0 for each in shares.values())
        points.append(Point(variant, seed, dict(settings), forget, retain, scores))
    best = max(range(len(points)), key=lambda place: (round(points[place].retain - points[place].forget, 9), -place))
    return [
        replace(point, picked=place == best, front=not any(_beats(other, point) for other in points))
        for place, point in enumerate(points)
    ]


def described(axes: Mapping[str, Sequence[Any]], evaluators: Sequence[Evaluator], points: Sequence[Point]) -> Any:
    """Returns the `sweep` section of a run's manifest and of `results.json`."""
    if not points:
        return None
    return {
        "axes": {name: list(values) for name, values in axes.items()},
        "rule": RULE,
        "validation_share": VALIDATION_SHARE,
        "suites": {
            evaluator.suite: {"metric": _headline(evaluator), "goal": evaluator.goal} for evaluator in evaluators
        },
        "points": [asdict(point) for point in points],
    }


def _parted(evaluator: Evaluator) -> bool:
    return "part" in type(evaluator).model_fields


def _beats(one: Point, other: Point) -> bool:
    no_worse = one.retain >= other.retain and one.forget <= other.forget
    return no_worse and (one.retain > other.retain or one.forget < other.forget)


def _headline(evaluator: Evaluator) -> str:
    return evaluator.headline[0]


def _higher_is_better(evaluator: Evaluator) -> bool:
    told = evaluator.described
    return Column(told["suite"], None, _headline(evaluator), told["goal"], told["method"]).higher_is_better


def _score(items: ItemTable, metric: str) -> float:
    return mean_values(items, [metric]).get(metric, math.nan)

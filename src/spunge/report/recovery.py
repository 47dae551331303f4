"""What attacks brought back: each attacked suite beside the one it asks again, item by item."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from spunge.report.answers import AT, Answers
from spunge.report.artifacts import Suite
from spunge.report.estimates import bounded, estimate, per_item
from spunge.statistics import mean_interval, ratio_interval
from spunge.variants import BASE


def recovered(suites: Sequence[Suite], measured: Sequence[Answers]) -> Iterator[dict[str, Any]]:
    """Yields one row an attack, setting, scope and variant: the score before and after, and the share brought back.

    That share is (attacked − unlearned) / (base − unlearned) on the items that all three answered, with its paired
    interval: 0 nothing, 1 all. It is None where unlearning took nothing beyond chance.
    """
    by_name = {(answers.suite, answers.metric): answers for answers in measured}
    listed = {suite.suite: suite for suite in suites}
    for attack in suites:
        plain = listed.get(attack.attacks or "")
        metrics = [m.name for m in (plain.metrics if plain else ()) if m.shown and (attack.suite, m.name) in by_name]
        if plain and metrics and (plain.suite, metrics[0]) in by_name:
            yield from _attack(attack, by_name[plain.suite, metrics[0]], by_name[attack.suite, metrics[0]])


def _attack(attack: Suite, plain: Answers, attacked: Answers) -> Iterator[dict[str, Any]]:
    places = {key: column for column, key in enumerate(plain.items)}
    for scope in attacked.scopes:
        if scope.task is None:  # all the settings at once are no attack
            continue
        task, _, setting = scope.task.rpartition(AT)
        # The same items before the attack; those that it did not ask are left out.
        pairs = [
            (places[task, attacked.items[column][1]], column)
            for column in scope.rows
            if (task, attacked.items[column][1]) in places
        ]
        if pairs:
            before, after = (np.array(columns) for columns in zip(*pairs, strict=True))
            for variant in dict.fromkeys(name for name, _ in attacked.models):
                yield {
                    "suite": attack.suite, "attacks": plain.suite, "goal": attack.goal, "task": task,
                    "setting": setting, "attribute": scope.attribute, "attribute_value": scope.attribute_value,
                    "metric": plain.metric, "variant": variant, **_row(plain, attacked, variant, before, after),
                }  # fmt: skip


def _row(plain: Answers, attacked: Answers, variant: str, before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    """The scores of one variant before and after, and what came back."""
    seeds = [seed for name, seed in attacked.models if name == variant]
    mine = [plain.models.index((variant, seed)) for seed in seeds if (variant, seed) in plain.models]
    base = [plain.models.index((BASE.name, seed)) for seed in seeds if (BASE.name, seed) in plain.models]
    hit = attacked.rows(variant)
    known = np.isin(before, plain.complete([*mine, *base], before)) & np.isin(after, attacked.complete(hit, after))
    before, after = before[known], after[known]
    scores = {
        "base": (plain, base, before),
        "unlearned": (plain, mine, before),
        "attacked": (attacked, hit, after),
    }
    row: dict[str, Any] = {"n": len(before)}
    for name, (answers, rows, items) in scores.items():
        estimated = estimate(answers, rows, items) if rows else None
        row |= {
            name: estimated and estimated.value,
            f"{name}_low": estimated and estimated.low,
            f"{name}_high": estimated and estimated.high,
        }
    row |= {"recovered": None, "recovered_low": None, "recovered_high": None}
    if variant == BASE.name or len(before) < 2 or not (base and mine):
        return row
    original, unlearned, again = (per_item(*each) for each in scores.values())
    clusters = plain.clusters_of(before)
    if 0 in mean_interval(original.mean(0) - unlearned.mean(0), clusters=clusters):
        return row
    taken, brought = (values.mean(0) - unlearned.mean(0) for values in (original, again))
    share, interval = ratio_interval(brought, taken, clusters=clusters)
    if (ends := bounded(interval)) is not None:
        row |= {"recovered": share, "recovered_low": ends[0], "recovered_high": ends[1]}
    return row

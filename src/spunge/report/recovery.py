"""What attacks brought back: each attacked suite beside the one it asks again, item by item."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from spunge.report.answers import AT, Answers
from spunge.report.artifacts import Suite
from spunge.report.estimates import bounded, estimate, per_item
from spunge.statistics import compare, ratio_interval
from spunge.variants import BASE, ORACLE

KEPT = "kept"
"""The metric that says of a setting which share of what must stay is left: bookkeeping of attacks that train."""
_UNTOUCHED = "0 steps"
"""With which the name of a setting begins whose training has not."""

_Measured = Mapping[tuple[str, str], Answers]
"""By suite and metric."""


def begun(setting: str) -> bool:
    """Whether an attack has begun in a setting; before that the score says what it said without it."""
    return not setting.startswith(_UNTOUCHED)


def recovered(suites: Sequence[Suite], measured: Sequence[Answers]) -> Iterator[dict[str, Any]]:
    """Yields one row an attack, setting, scope and variant: the score before and after, and the share brought back.

    `recovered` is (attacked − unlearned) / (base − unlearned) on the items that all three answered, with its paired
    interval: 0 nothing, 1 all. Where there is an oracle, a model that never knew, its score stands for the unlearned
    one's. What the unlearned model answers without any attack is then part of it: it is the sum of `never_gone`,
    (unlearned − oracle) / (base − oracle), and `returned`, (attacked − unlearned) / (base − oracle), which without an
    oracle are None and `recovered` itself. All are None where unlearning took nothing, or the oracle lacks nothing,
    beyond chance. `worst_low` and `worst_high` are the ends of `returned` that hold for all settings at once that were
    tried on the suite without the base model's weights (Bonferroni), so for the largest of them too.
    """
    by_name = {(answers.suite, answers.metric): answers for answers in measured}
    listed = {suite.suite: suite for suite in suites}
    pairs: list[tuple[Suite, Answers, Answers]] = []
    for attack in suites:
        plain = listed.get(attack.attacks or "")
        metrics = [m.name for m in (plain.metrics if plain else ()) if m.shown and (attack.suite, m.name) in by_name]
        if plain and metrics and (plain.suite, metrics[0]) in by_name:
            pairs.append((attack, by_name[plain.suite, metrics[0]], by_name[attack.suite, metrics[0]]))
    tried = Counter(
        plain.suite
        for attack, plain, attacked in pairs
        if not attack.needs_base
        for setting in {task.rpartition(AT)[2] for task, _ in attacked.items}
        if begun(setting)
    )
    for attack, plain, attacked in pairs:
        yield from _attack(attack, plain, attacked, by_name.get((attack.suite, KEPT)), max(1, tried[plain.suite]))


def _attack(
    attack: Suite, plain: Answers, attacked: Answers, kept: Answers | None, tried: int
) -> Iterator[dict[str, Any]]:
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
                    "metric": plain.metric, "variant": variant, "tried": tried,
                    "needs_base": attack.needs_base,
                    "kept": kept and _left(kept, variant, setting),
                    **_row(plain, attacked, variant, before, after, tried),
                }  # fmt: skip


def _left(kept: Answers, variant: str, setting: str) -> float | None:
    """The share of what must stay that a variant's models have left in a setting, on average."""
    columns = [column for column, (task, _) in enumerate(kept.items) if task == f"{KEPT}{AT}{setting}"]
    values = kept.values[np.ix_(kept.rows(variant), columns)]
    return None if not values.size or np.isnan(values).any() else float(values.mean())


def _row(
    plain: Answers, attacked: Answers, variant: str, before: np.ndarray, after: np.ndarray, tried: int
) -> dict[str, Any]:
    """The scores of one variant before and after, and what came back."""
    seeds = [seed for name, seed in attacked.models if name == variant]
    mine, base, oracle = (
        [plain.models.index((name, seed)) for seed in seeds if (name, seed) in plain.models]
        for name in (variant, BASE.name, ORACLE.name)
    )
    hit = attacked.rows(variant)
    asked = plain.complete([*mine, *base, *oracle], before)
    known = np.isin(before, asked) & np.isin(after, attacked.complete(hit, after))
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
    shares = ("recovered", "never_gone", "returned")
    row |= {f"{name}{end}": None for name in shares for end in ("", "_low", "_high")}
    row |= {"worst_low": None, "worst_high": None}
    if variant in (BASE.name, ORACLE.name) or len(before) < 2 or not (base and mine):
        return row
    original, unlearned, again = (per_item(*each).mean(0) for each in scores.values())
    forgotten = per_item(plain, oracle, before).mean(0) if oracle else unlearned
    if not all(np.isfinite(each).all() for each in (original, unlearned, again, forgotten)):
        return row
    clusters = plain.clusters_of(before)
    # Wilson's interval of a share never holds 0 once a single item differs: whether anything went is a paired test.
    if 0 in compare(original, forgotten, clusters=clusters).interval():
        return row

    def share_of(part: np.ndarray, confidence: float = 0.95) -> tuple[float | None, float | None, float | None]:
        share, interval = ratio_interval(part, original - forgotten, clusters=clusters, confidence=confidence)
        return (None, None, None) if (ends := bounded(interval)) is None else (share, *ends)

    parts = (again - forgotten, unlearned - forgotten if oracle else None, again - unlearned)
    for name, part in zip(shares, parts, strict=True):
        if part is not None:
            row[name], row[f"{name}_low"], row[f"{name}_high"] = share_of(part)
    _, row["worst_low"], row["worst_high"] = share_of(again - unlearned, 1 - 0.05 / tried)
    return row

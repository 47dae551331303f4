"""Scores and paired differences of answers, each with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, sqrt

import numpy as np

from spunge.report.answers import Answers
from spunge.report.rows import Ends
from spunge.statistics import Interval, PairedDifference, compare, mean_interval, ratio_interval


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval; None where it means nothing."""

    value: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """A paired difference a − b with what its test needs, and as a share of b; None where that means nothing."""

    paired: PairedDifference
    relative: float | None
    relative_ends: Ends | None


def estimate(answers: Answers, rows: Sequence[int], items: np.ndarray) -> Estimate:
    """Returns the score of one variant, over one seed or several, on some of the items.

    Over several seeds the interval is of items and seeds: another seed would have given another model.
    """
    both = answers.complete(rows, items)
    if not len(both):
        return Estimate(None, None, None, 0)
    answered, clusters = answers.answered(rows, both), answers.clusters_of(both)
    if answers.weights is None:
        ends = bounded(mean_interval(answered, clusters=clusters)) or (None, None)
        return Estimate(float(answered.mean()), *ends, len(both))
    # A corpus's perplexity is exp(Σ nll / Σ tokens): its interval is that of the logarithm, so that it stays above 0.
    logs = np.stack([_linearised(*each) for each in zip(answered, answers.tokens(rows, both), strict=True)])
    interval = mean_interval(logs, clusters=clusters)
    value, low, high = (_exp(each) for each in (float(logs.mean()), interval.low, interval.high))
    return Estimate(value, low, high, len(both))


def macro(groups: Sequence[Estimate]) -> Estimate:
    """Returns the mean over groups, in which each group counts the same."""
    values = [(each.value, each.low, each.high) for each in groups if each.value is not None]
    if not values:
        return Estimate(None, None, None, 0)
    value = sum(each[0] for each in values) / len(values)
    n = sum(each.n for each in groups)
    if any(low is None or high is None for _, low, high in values):
        return Estimate(value, None, None, n)
    below = sqrt(sum((at - (low or 0.0)) ** 2 for at, low, _ in values)) / len(values)
    above = sqrt(sum(((high or 0.0) - at) ** 2 for at, _, high in values)) / len(values)
    return Estimate(value, value - below, value + above, n)


def difference(answers: Answers, pairs: Sequence[tuple[int, int]], items: np.ndarray) -> Difference | None:
    """Returns how far two variants are apart on the items that both answered, paired item by item, seed by seed.

    None where they answered none in common, or where the mean of one is beyond all numbers.
    """
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    both = answers.complete([*first, *second], items)
    if not len(both):
        return None
    a, b = (per_item(answers, rows, both) for rows in (first, second))
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return None
    clusters = answers.clusters_of(both)
    ratio, interval = ratio_interval(a, b, clusters=clusters)
    ends = bounded(Interval(interval.low - 1, interval.high - 1))
    return Difference(compare(a, b, clusters=clusters), ratio - 1 if isfinite(ratio) else None, ends)


def bounded(interval: Interval) -> Ends | None:
    """Returns the ends of an interval; None where it has none."""
    return (interval.low, interval.high) if isfinite(interval.low) and isfinite(interval.high) else None


def per_item(answers: Answers, rows: Sequence[int], items: np.ndarray) -> np.ndarray:
    """Returns [rows, items]: values whose mean over the items is each row's score, of items that all rows answered."""
    values = answers.answered(rows, items)
    if answers.weights is None:
        return values
    return np.stack([_perplexities(*each) for each in zip(values, answers.tokens(rows, items), strict=True)])


def _exp(log: float) -> float | None:
    return float(np.exp(log)) if log < 700 else None


def _linearised(nll: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """One value an item whose mean is Σ nll / Σ tokens and whose spread is that ratio's (infinitesimal jackknife)."""
    ratio = nll.sum() / tokens.sum()
    return ratio + (nll - ratio * tokens) / tokens.mean()


def _perplexities(nll: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """One value an item whose mean is the corpus's perplexity and whose spread is the perplexity's."""
    ratio = nll.sum() / tokens.sum()
    with np.errstate(over="ignore"):
        return np.exp(ratio) * (1 + (nll - ratio * tokens) / tokens.mean())

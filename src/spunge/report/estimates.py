"""Scores and paired differences of answers, each with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import expm1, inf, isfinite, sqrt

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

    value: float
    paired: PairedDifference
    """What is tested; of perplexities the difference of their logarithms."""
    relative: float | None
    relative_ends: Ends | None
    level: float | None = None
    """Of perplexities, b's: a texts' difficulty multiplies both, so their ratio is surer than their distance."""

    def ends(self, interval: Interval) -> Ends | None:
        """Returns an interval of `paired` in the units of `value`; None where it has no bounds."""
        if self.level is None:
            return bounded(interval)
        return bounded(Interval(self.level * _growth(interval.low), self.level * _growth(interval.high)))

    @property
    def variances(self) -> tuple[float, float] | None:
        """Those of `value` that items and seeds contribute, to first order; None where they are not known."""
        spread = self.paired.spread
        if not spread.known:
            return None
        squared = 1.0 if self.level is None else self.level**2
        return squared * spread.unit_variance, squared * spread.seed_variance


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
    logs = _logs(answers, rows, both)
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
    clusters = answers.clusters_of(both)
    if answers.weights is not None:
        return _of_perplexities(_logs(answers, first, both), _logs(answers, second, both), clusters)
    a, b = (answers.answered(rows, both) for rows in (first, second))
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return None
    paired = compare(a, b, clusters=clusters)
    ratio, interval = ratio_interval(a, b, clusters=clusters)
    ends = bounded(Interval(interval.low - 1, interval.high - 1))
    return Difference(paired.difference, paired, ratio - 1 if isfinite(ratio) else None, ends)


def _of_perplexities(a: np.ndarray, b: np.ndarray, clusters: Sequence[object] | None) -> Difference | None:
    """The difference of two perplexities whose logarithms are the means of these."""
    values = [_exp(float(logs.mean())) for logs in (a, b)]
    if values[0] is None or values[1] is None:
        return None
    paired = compare(a, b, clusters=clusters)
    interval = paired.interval()
    ends = bounded(Interval(_growth(interval.low), _growth(interval.high)))
    return Difference(values[0] - values[1], paired, values[0] / values[1] - 1, ends, values[1])


def bounded(interval: Interval) -> Ends | None:
    """Returns the ends of an interval; None where it has none."""
    return (interval.low, interval.high) if isfinite(interval.low) and isfinite(interval.high) else None


def per_item(answers: Answers, rows: Sequence[int], items: np.ndarray) -> np.ndarray:
    """Returns [rows, items]: values whose mean over the items is each row's score, of items that all rows answered."""
    if answers.weights is None:
        return answers.answered(rows, items)
    logs = _logs(answers, rows, items)
    means = logs.mean(axis=1, keepdims=True)
    with np.errstate(over="ignore"):
        return np.exp(means) * (1 + logs - means)


def _logs(answers: Answers, rows: Sequence[int], items: np.ndarray) -> np.ndarray:
    """[rows, items]: values whose mean over the items is the logarithm of each row's perplexity."""
    values = answers.answered(rows, items)
    return np.stack([_linearised(*each) for each in zip(values, answers.tokens(rows, items), strict=True)])


def _growth(log: float) -> float:
    """By what share e to the power of this is above 1; infinite beyond all numbers."""
    return expm1(log) if log < 700 else inf


def _exp(log: float) -> float | None:
    return float(np.exp(log)) if log < 700 else None


def _linearised(nll: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """One value an item whose mean is Σ nll / Σ tokens and whose spread is that ratio's (infinitesimal jackknife)."""
    ratio = nll.sum() / tokens.sum()
    return ratio + (nll - ratio * tokens) / tokens.mean()

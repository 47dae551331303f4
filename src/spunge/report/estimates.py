"""Scores and paired differences of answers, each with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import erfc, isfinite, sqrt
from statistics import NormalDist

import numpy as np

from spunge.report.answers import Answers
from spunge.statistics import Interval, mean_interval, paired_difference, relative_difference, wilson

Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval; None where it means nothing."""

    value: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """A paired difference a − b, absolute and relative to b; None where it means nothing."""

    difference: float | None
    low: float | None
    high: float | None
    relative: float | None
    relative_low: float | None
    relative_high: float | None
    p: float | None
    n: int


NOTHING = Difference(None, None, None, None, None, None, None, 0)


def estimate(answers: Answers, rows: Sequence[int], items: np.ndarray) -> Estimate:
    """Returns the score of one variant, over one seed or several, on some of the items.

    Shares get Wilson's interval, other means Student's. Over several seeds the items' interval is widened by the
    spread between the seeds' means: another seed would have given another model.
    """
    answered = answers.answered(rows, items)
    n = answered.shape[1]
    if not n:
        return Estimate(None, None, None, 0)
    if answers.weights is not None:
        # A corpus's perplexity is exp(Σ nll / Σ tokens): linear in log space around its value.
        logs = [_linearised(*each) for each in zip(answered, answers.tokens(rows, items), strict=True)]
        value, low, high = (_exp(each) for each in _mean(np.stack(logs), binary=False))
        return Estimate(value, low, high, n)
    return Estimate(*_mean(answered, binary=answers.binary), n)


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


def difference(answers: Answers, pairs: Sequence[tuple[int, int]], items: np.ndarray) -> Difference:
    """Returns how far two variants are apart on the items that both answered, paired item by item, seed by seed."""
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    both = answers.complete([*first, *second], items)
    if not len(both):
        return NOTHING
    a, b = (per_item(answers, rows, both) for rows in (first, second))
    # Verdicts are resampled by counts, at no cost; other values one by one.
    draws = 4_000 if answers.binary else int(np.clip(8_000_000 // len(both), 1_000, 2_000))
    found = paired_difference(a.mean(0), b.mean(0), draws=draws)
    if not isfinite(found.difference):
        return NOTHING
    relative, around = relative_difference(a.mean(0), b.mean(0), draws=draws)
    interval, p = found.interval, found.p
    if len(pairs) > 1:
        spread = _spread(a.mean(1) - b.mean(1))
        interval = _widened(found.difference, interval, spread)
        around = _widened(relative, around, spread / abs(float(b.mean())) if b.mean() else 0.0)
        error = (interval.high - interval.low) / (2 * Z)
        p = erfc(abs(found.difference) / error / sqrt(2)) if error else 1.0
    if len(both) < 2:
        interval, around, p = Interval(np.nan, np.nan), Interval(np.nan, np.nan), np.nan
    figures = (found.difference, interval.low, interval.high, relative, around.low, around.high, p)
    return Difference(*(float(each) if isfinite(each) else None for each in figures), n=found.n)


def per_item(answers: Answers, rows: Sequence[int], items: np.ndarray) -> np.ndarray:
    """Returns [rows, items]: values whose mean over the items is each row's score, of items that all rows answered."""
    values = answers.answered(rows, items)
    if answers.weights is None:
        return values
    return np.stack([_perplexities(*each) for each in zip(values, answers.tokens(rows, items), strict=True)])


def _mean(values: np.ndarray, *, binary: bool) -> tuple[float, float | None, float | None]:
    """The mean of [seeds, items] with its interval."""
    per_item = values.mean(0)
    mean, n = float(per_item.mean()), len(per_item)
    interval = wilson(float(per_item.sum()), n) if binary else mean_interval(per_item)
    if len(values) > 1:
        interval = _widened(mean, interval, _spread(values.mean(1)))
        if binary:
            interval = Interval(max(0.0, interval.low), min(1.0, interval.high))
    known = isfinite(interval.low) and isfinite(interval.high)
    return (mean, interval.low, interval.high) if known else (mean, None, None)


def _exp(log: float | None) -> float | None:
    return float(np.exp(log)) if log is not None and log < 700 else None


def _spread(means: np.ndarray) -> float:
    """Half the 95 % interval that the seeds' means alone would give."""
    return Z * float(means.std(ddof=1)) / sqrt(len(means))


def _widened(value: float, interval: Interval, half: float) -> Interval:
    low = value - sqrt((value - interval.low) ** 2 + half**2)
    return Interval(low, value + sqrt((interval.high - value) ** 2 + half**2))


def _linearised(nll: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """One value an item whose mean is Σ nll / Σ tokens and whose spread is that ratio's (infinitesimal jackknife)."""
    ratio = nll.sum() / tokens.sum()
    return ratio + (nll - ratio * tokens) / tokens.mean()


def _perplexities(nll: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """One value an item whose mean is the corpus's perplexity and whose spread is the perplexity's."""
    ratio = nll.sum() / tokens.sum()
    with np.errstate(over="ignore"):
        return np.exp(ratio) * (1 + (nll - ratio * tokens) / tokens.mean())

"""Intervals and tests for the report: pure functions on arrays, every draw from a seed that is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import comb, erf, exp, isnan, lgamma, log, nan, sqrt
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
_BLOCK = 4_000_000
"""How many resampled values are held at once."""


@dataclass(frozen=True)
class Interval:
    """An interval of confidence."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Comparison:
    """How far two variants are apart on the same items."""

    difference: float
    """Mean of a − b."""
    interval: Interval
    p: float
    """Two-sided, that there is no difference."""
    n: int


@dataclass(frozen=True)
class NonInferiority:
    """Whether a variant is no worse than another by more than a margin."""

    difference: float
    lower: float
    """The one-sided lower bound of the difference."""
    margin: float
    holds: bool


def normal_quantile(probability: float) -> float:
    """Returns z with Φ(z) = probability, to machine precision, by bisection."""
    if not 0 < probability < 1:
        raise ValueError(f"a probability between 0 and 1 is needed, not {probability}")
    low, high = -40.0, 40.0
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if 0.5 * (1 + erf(middle / sqrt(2))) < probability else (low, middle)
    return (low + high) / 2


def wilson(successes: float, n: int, confidence: float = 0.95) -> Interval:
    """Returns Wilson's score interval of a share (Wilson, 1927); of no trials, all is possible."""
    if n == 0:
        return Interval(0.0, 1.0)
    z = normal_quantile(0.5 + confidence / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At 0 and n the bound is the share itself, which rounding may miss by a hair.
    return Interval(max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))


def mean_interval(
    values: ArrayLike,
    *,
    confidence: float = 0.95,
    method: Literal["normal", "bootstrap"] = "normal",
    seed: int = 0,
    draws: int = 10_000,
) -> Interval:
    """Returns an interval of the mean: Student's t around it, or percentiles of the resampled means."""
    x = _vector(values)
    if method == "bootstrap":
        return _percentiles(_resampled_means(x, draws, np.random.default_rng(seed)), confidence)
    if len(x) < 2:
        return Interval(nan, nan)
    half = t_quantile(0.5 + confidence / 2, len(x) - 1) * float(x.std(ddof=1)) / sqrt(len(x))
    return Interval(float(x.mean()) - half, float(x.mean()) + half)


@cache
def t_quantile(probability: float, degrees: float) -> float:
    """Returns the quantile of Student's t, by bisection on its distribution function."""
    if not 0 < probability < 1:
        raise ValueError(f"a probability between 0 and 1 is needed, not {probability}")
    if probability < 0.5:
        return -t_quantile(1 - probability, degrees)
    low, high = 0.0, 1.0
    while 1 - _t_tail(high, degrees) < probability:
        high *= 2
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if 1 - _t_tail(middle, degrees) < probability else (low, middle)
    return (low + high) / 2


def mcnemar(a: ArrayLike, b: ArrayLike) -> float:
    """Returns the two-sided p of McNemar's exact test on paired verdicts (McNemar, 1947): only disagreements count."""
    x, y = _pair(a, b)
    if not (np.isin(x, (0, 1)).all() and np.isin(y, (0, 1)).all()):
        raise ValueError("McNemar's test is for verdicts of 0 and 1")
    won, lost = int(((x == 1) & (y == 0)).sum()), int(((x == 0) & (y == 1)).sum())
    n, fewer = won + lost, min(won, lost)
    return min(1.0, 2 * exp(_log_binomial_tail(fewer, n)))


def paired_difference(
    a: ArrayLike, b: ArrayLike, *, confidence: float = 0.95, seed: int = 0, draws: int = 10_000
) -> Comparison:
    """Compares two variants on the same items by the paired bootstrap of the difference in means.

    Differences of 0/1 verdicts take three values, so that one multinomial draw is a whole resample; their p is
    McNemar's, exact. Other values get the p of the bootstrap: twice the smaller share of resamples on the far side
    of zero.
    """
    x, y = _pair(a, b)
    difference = x - y
    means = _resampled_means(difference, draws, np.random.default_rng(seed))
    verdicts = bool(np.isin(x, (0, 1)).all() and np.isin(y, (0, 1)).all())
    return Comparison(
        float(difference.mean()),
        _percentiles(means, confidence),
        mcnemar(x, y) if verdicts else _bootstrap_p(means),
        len(x),
    )


def relative_difference(
    a: ArrayLike, b: ArrayLike, *, confidence: float = 0.95, seed: int = 0, draws: int = 10_000
) -> tuple[float, Interval]:
    """Returns mean(a)/mean(b) − 1 with its paired bootstrap interval; nan where mean(b) is 0.

    An interval that a resample with mean(b) = 0 makes infinite is given as infinite: the data do not bound it.
    """
    x, y = _pair(a, b)
    if y.mean() == 0:
        return nan, Interval(nan, nan)
    generator = np.random.default_rng(seed)
    pairs, counts = np.unique(np.stack([x, y]), axis=1, return_counts=True)
    if pairs.shape[1] <= 64:
        drawn = generator.multinomial(len(x), counts / len(x), size=draws)
        top, bottom = drawn @ pairs[0], drawn @ pairs[1]
    else:
        sums = [(x[index].sum(1), y[index].sum(1)) for index in _resamples(len(x), draws, generator)]
        top, bottom = (np.concatenate(parts) for parts in zip(*sums, strict=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = top / bottom - 1
    ratios = np.where(np.isnan(ratios), 0.0, ratios)
    return float(x.mean() / y.mean() - 1), _percentiles(ratios, confidence)


def cluster_bootstrap(
    values: ArrayLike, clusters: Sequence[object], *, confidence: float = 0.95, seed: int = 0, draws: int = 10_000
) -> Interval:
    """Returns an interval of the mean when whole clusters (subjects, groups, documents) are what was sampled.

    For paired differences give a − b.
    """
    x = _vector(values)
    if len(clusters) != len(x):
        raise ValueError(f"{len(x)} values but {len(clusters)} clusters")
    _, labels = np.unique(np.asarray([str(cluster) for cluster in clusters]), return_inverse=True)
    sums, sizes = np.bincount(labels, weights=x), np.bincount(labels)
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=draws)
    return _percentiles((drawn @ sums) / (drawn @ sizes), confidence)


def two_way_bootstrap(values: ArrayLike, *, confidence: float = 0.95, seed: int = 0, draws: int = 10_000) -> Interval:
    """Returns an interval of the mean of values [seeds, items] that resamples seeds and items both.

    It is a little wide (Owen, 2007), which is the safe side; with one seed the variance between seeds is unknown and
    the interval is that of the items alone.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 2 or not x.size:
        raise ValueError(f"values must be [seeds, items], not of shape {x.shape}")
    seeds, n = x.shape
    generator = np.random.default_rng(seed)
    means = []
    for start in range(0, draws, size := max(1, _BLOCK // n)):
        count = min(size, draws - start)
        rows = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=count) / seeds
        columns = generator.multinomial(n, np.full(n, 1 / n), size=count) / n
        means.append(((rows @ x) * columns).sum(1))
    return _percentiles(np.concatenate(means), confidence)


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Returns adjusted p values that bound the false discovery rate (Benjamini and Hochberg, 1995).

    A nan stays nan and counts as no test.
    """
    p = np.asarray(p_values, dtype=np.float64)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    adjusted = np.full(len(p), nan)
    if len(order):
        scaled = p[order] * len(order) / np.arange(1, len(order) + 1)
        adjusted[order] = np.minimum(1.0, np.minimum.accumulate(scaled[::-1])[::-1])
    return adjusted.tolist()


def non_inferiority(
    a: ArrayLike, b: ArrayLike, *, margin: float, confidence: float = 0.95, seed: int = 0, draws: int = 10_000
) -> NonInferiority:
    """Says whether a is no more than `margin` below b on the same items: one-sided, by the paired bootstrap.

    Higher is better; where lower is better, swap them.
    """
    if margin <= 0:
        raise ValueError(f"a margin above 0 is needed, not {margin}")
    x, y = _pair(a, b)
    means = _resampled_means(x - y, draws, np.random.default_rng(seed))
    lower = float(np.quantile(means, 1 - confidence))
    return NonInferiority(float((x - y).mean()), lower, margin, lower > -margin)


def area_under_roc(scores: ArrayLike, positive: ArrayLike) -> float:
    """Returns how often a positive outranks a negative, a tie counting half; nan when one kind is missing."""
    x, is_positive = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    if x.shape != is_positive.shape or x.ndim != 1:
        raise ValueError(f"as many labels as scores are needed: {x.shape} and {is_positive.shape}")
    if np.isnan(x).any():
        return nan
    positives, negatives = int(is_positive.sum()), int((~is_positive).sum())
    if not positives or not negatives:
        return nan
    _, places, counts = np.unique(x, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    return float((ranks[is_positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def kolmogorov_smirnov(a: ArrayLike, b: ArrayLike) -> float:
    """Returns the exact two-sided p-value that two samples are of one continuous distribution.

    The share of all ways to interleave the samples whose distribution functions come at least as far apart (Hodges
    1958), by lattice paths: of those that reach (i, j), the share that has been outside already. Kept as that share
    rather than as its complement, so that a tiny p-value keeps its digits. With ties it is an upper bound.
    """
    x, y = np.sort(_vector(a)), np.sort(_vector(b))
    if np.isnan(x).any() or np.isnan(y).any():
        return nan
    n, m = len(x), len(y)
    at = np.concatenate([x, y])
    furthest = int(np.abs(np.searchsorted(x, at, "right") * m - np.searchsorted(y, at, "right") * n).max())
    outside = [1.0 if j * n >= furthest else 0.0 for j in range(m + 1)]
    for i in range(1, n + 1):
        for j in range(m + 1):
            if abs(i * m - j * n) >= furthest:
                outside[j] = 1.0
            else:
                left = outside[j - 1] * j if j else 0.0
                outside[j] = (outside[j] * i + left) / (i + j)
    return outside[m]


def _vector(values: ArrayLike) -> Floats:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not len(x):
        raise ValueError(f"a list of values is needed, not one of shape {x.shape}")
    return x


def _pair(a: ArrayLike, b: ArrayLike) -> tuple[Floats, Floats]:
    x, y = _vector(a), _vector(b)
    if len(x) != len(y):
        raise ValueError(f"pairs are needed: {len(x)} values and {len(y)}")
    return x, y


def _resampled_means(x: Floats, draws: int, generator: np.random.Generator) -> Floats:
    """Draws bootstrap means; a variable of few values by multinomial counts of them, which is the same in law."""
    distinct, counts = np.unique(x, return_counts=True)
    if len(distinct) <= 64:
        return generator.multinomial(len(x), counts / len(x), size=draws) @ distinct / len(x)
    return np.concatenate([x[index].mean(1) for index in _resamples(len(x), draws, generator)])


def _resamples(n: int, draws: int, generator: np.random.Generator) -> list[NDArray[np.int64]]:
    size = max(1, _BLOCK // n)
    return [generator.integers(0, n, size=(min(size, draws - start), n)) for start in range(0, draws, size)]


def _percentiles(draws: Floats, confidence: float) -> Interval:
    if np.isnan(draws).any():
        return Interval(nan, nan)
    # `quantile` interpolates, and between infinities that is nan.
    low, high = np.quantile(draws, [0.5 - confidence / 2, 0.5 + confidence / 2], method="nearest")
    return Interval(float(low), float(high))


def _bootstrap_p(means: Floats) -> float:
    if np.isnan(means).any():
        return nan
    below, above = (int((means <= 0).sum()), int((means >= 0).sum()))
    return min(1.0, 2 * (min(below, above) + 1) / (len(means) + 1))


def _log_binomial_tail(k: int, n: int) -> float:
    """Returns log P(X ≤ k) of a fair coin thrown n times."""
    if n <= 1000:
        return log(sum(comb(n, i) for i in range(k + 1))) - n * log(2)
    logs = [lgamma(n + 1) - lgamma(i + 1) - lgamma(n - i + 1) for i in range(k + 1)]
    top = max(logs)
    return top + log(sum(exp(value - top) for value in logs)) - n * log(2)


def _t_tail(t: float, degrees: float) -> float:
    """Returns P(T > t) for t ≥ 0, by the regularised incomplete beta function."""
    return 0.5 * _incomplete_beta(degrees / 2, 0.5, degrees / (degrees + t * t))


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """Returns I_x(a, b) by its continued fraction (Lentz's method)."""
    if x in (0.0, 1.0):
        return x
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(b, a, 1 - x)
    front = exp(lgamma(a + b) - lgamma(a) - lgamma(b) + a * log(x) + b * log(1 - x)) / a
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    total = d
    for m in range(1, 10_000):
        for factor in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d, c = 1 / (1 + factor * d), 1 + factor / c
            total *= c * d
        if abs(c * d - 1) < 1e-15 or isnan(total):
            break
    return front * total

"""Intervals and tests for what a run shows: pure functions on arrays, each drawing from its own seed.

SciPy is imported where it is used: `scipy.stats` takes half a second, which `spunge --help` and `plan` must not pay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import nan, sqrt
from statistics import NormalDist
from typing import Any

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


def wilson(successes: float, n: int, confidence: float = 0.95) -> Interval:
    """Returns Wilson's score interval of a share (Wilson, 1927); of no trials, all is possible."""
    if n == 0:
        return Interval(0.0, 1.0)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At 0 and n the bound is the share itself, which rounding may miss by a hair.
    return Interval(max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))


def mean_interval(values: ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Returns Student's t interval of the mean; nan of a single value, whose spread is unknown."""
    from scipy.special import stdtrit

    x = _vector(values)
    if len(x) < 2:
        return Interval(nan, nan)
    half = float(stdtrit(len(x) - 1, 0.5 + confidence / 2)) * float(x.std(ddof=1)) / sqrt(len(x))
    return Interval(float(x.mean()) - half, float(x.mean()) + half)


def mcnemar(a: ArrayLike, b: ArrayLike) -> float:
    """Returns the two-sided p of McNemar's exact test on paired verdicts (McNemar, 1947): only disagreements count."""
    from scipy.special import bdtr

    x, y = _pair(a, b)
    if not (np.isin(x, (0, 1)).all() and np.isin(y, (0, 1)).all()):
        raise ValueError("McNemar's test is for verdicts of 0 and 1")
    won, lost = int(((x == 1) & (y == 0)).sum()), int(((x == 0) & (y == 1)).sum())
    # A fair coin's tails are equal, so twice one is the exact test; `binomtest` says the same, in 0.4 ms each.
    return min(1.0, 2 * float(bdtr(min(won, lost), won + lost, 0.5)))


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


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Returns adjusted p values that bound the false discovery rate (Benjamini and Hochberg, 1995).

    A nan stays nan and counts as no test.
    """
    from scipy.stats import false_discovery_control

    adjusted = np.asarray(p_values, dtype=np.float64).copy()
    tested = ~np.isnan(adjusted)  # SciPy refuses nan, and a test that could not be made must not weaken the others
    adjusted[tested] = false_discovery_control(adjusted[tested])
    return adjusted.tolist()


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
    _, value, counts = np.unique(x, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[value]
    return float((ranks[is_positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def kolmogorov_smirnov(a: ArrayLike, b: ArrayLike) -> float:
    """Returns the exact two-sided p-value that two samples are of one continuous distribution; nan where one holds nan.

    The share of all ways to interleave the samples whose distribution functions come at least as far apart (Hodges,
    1958). With ties it is an upper bound. Where the two sizes' product passes 2³¹ SciPy warns, and answers by the limit
    law.
    """
    from scipy.stats import ks_2samp

    # `exact` even of large samples: the asymptotic value, SciPy's choice beyond 10,000, has no digits in the far tail.
    result: Any = ks_2samp(_vector(a), _vector(b), method="exact")  # a class made while running, which has no types
    return float(result.pvalue)


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


def _resamples(n: int, draws: int, generator: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Yields row numbers [draws, n] block by block: all at once took 1.6 GB of 200,000 items."""
    size = max(1, _BLOCK // n)
    return (generator.integers(0, n, size=(min(size, draws - start), n)) for start in range(0, draws, size))


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

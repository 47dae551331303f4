"""Intervals and tests for what a run shows: pure functions on arrays, none of which draws at random.

SciPy is imported where it is used: `scipy.stats` takes half a second, which `spunge --help` and `plan` must not pay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, copysign, exp, inf, isfinite, isinf, isnan, log, nan, sqrt
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
_SQUARED = 1e140
"""The square of more may be more than a float holds, summed over items."""
_LEAST_P = 1e-100
"""Far below any decision; near 1e-230 SciPy has no quantile of Student's t for some degrees of freedom."""


@dataclass(frozen=True)
class Interval:
    """An interval of confidence."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


def wilson(successes: float, n: float, confidence: float = 0.95, *, reach: float | None = None) -> Interval:
    """Returns Wilson's score interval of a share (Wilson, 1927); of no trials, all is possible.

    Args:
        successes: How many trials succeeded; after a correction for dependence not a whole number.
        n: Of how many.
        confidence: That the interval holds the share.
        reach: How many standard errors the bounds lie away; by default the normal quantile of the confidence.
    """
    if n == 0:
        return Interval(0.0, 1.0)
    z = NormalDist().inv_cdf(0.5 + confidence / 2) if reach is None else reach
    if isinf(z):
        return Interval(0.0, 1.0)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At 0 and n the bound is the share itself, which rounding may miss by a hair.
    return Interval(max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))


def corrected_prevalence(
    positive: float, n: float, sensitivity: tuple[int, int], specificity: tuple[int, int], confidence: float = 0.95
) -> tuple[float, Interval] | None:
    """Returns how frequent something really is that an imperfect reader finds `positive` times among n.

    (p + Sp − 1) / (Se + Sp − 1), cut to 0 … 1 (Rogan and Gladen, American Journal of Epidemiology 107, 1978), with the
    interval that carries the uncertainty of Se and Sp (Lang and Reiczigel, Preventive Veterinary Medicine 113, 2014).

    Args:
        positive: How many the reader calls positive.
        n: Of how many.
        sensitivity: How many of the true positives of a sample the reader calls so, of how many.
        specificity: How many of its true negatives the reader calls so, of how many.
        confidence: Of the interval.

    Returns:
        None where the sample lacks one of the two kinds, or the reader does no better than chance on it.
    """
    (hits, of_positive), (passed, of_negative) = sensitivity, specificity
    if not (n and of_positive and of_negative) or hits / of_positive + passed / of_negative <= 1:
        return None
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = (positive / n + passed / of_negative - 1) / (hits / of_positive + passed / of_negative - 1)
    p, se, sp = (positive + z**2 / 2) / (n + z**2), (hits + 1) / (of_positive + 2), (passed + 1) / (of_negative + 2)
    slope = se + sp - 1
    if slope <= 0:
        return None
    middle = (p + sp - 1) / slope
    by_se, by_sp = middle * se * (1 - se) / (of_positive + 2), (1 - middle) * sp * (1 - sp) / (of_negative + 2)
    shift = 2 * z**2 * (by_se - by_sp)
    half = z * sqrt(p * (1 - p) / (n + z**2) + middle * by_se + (1 - middle) * by_sp) / slope
    low, high = (min(max(middle + shift + sign * half, 0.0), 1.0) for sign in (-1, 1))
    return min(max(share, 0.0), 1.0), Interval(low, high)


def mcnemar(a: ArrayLike, b: ArrayLike) -> float:
    """Returns the two-sided p of McNemar's exact test on paired verdicts (McNemar, 1947): only disagreements count."""
    from scipy.special import bdtr

    x, y = _pair(a, b)
    if not (np.isin(x, (0, 1)).all() and np.isin(y, (0, 1)).all()):
        raise ValueError("McNemar's test is for verdicts of 0 and 1")
    won, lost = int(((x == 1) & (y == 0)).sum()), int(((x == 0) & (y == 1)).sum())
    # A fair coin's tails are equal, so twice one is the exact test; `binomtest` says the same, in 0.4 ms each.
    return min(1.0, 2 * float(bdtr(min(won, lost), won + lost, 0.5)))


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Returns adjusted p values that bound the false discovery rate (Benjamini and Hochberg, 1995).

    A nan stays nan and counts as no test.
    """
    from scipy.stats import false_discovery_control

    adjusted = np.asarray(p_values, dtype=np.float64).copy()
    tested = ~np.isnan(adjusted)  # SciPy refuses nan, and a test that could not be made must not weaken the others
    adjusted[tested] = false_discovery_control(adjusted[tested])
    return adjusted.tolist()


@dataclass(frozen=True)
class Spread:
    """How sure a mean over items and seeds is: what each of the two contributes to its variance."""

    items: int
    clusters: int | None
    """How many clusters were sampled; None where the items were."""
    seeds: int
    unit_variance: float
    """The part of the mean's variance that comes of which items, or clusters, were asked; nan of a single one."""
    seed_variance: float
    """The part that comes of which seeds were run; 0 of one seed, of which nothing is known."""

    @property
    def variance(self) -> float:
        """The mean's."""
        return self.unit_variance + self.seed_variance

    @property
    def known(self) -> bool:
        """Whether there are items enough to tell, and numbers."""
        return isfinite(self.variance)

    def reach(self, p: float, *, normal: bool = False) -> float:
        """Returns how many standard errors off a mean of this two-sided p lies.

        Each part goes out to its own Student's quantile, and the two distances add as the sides of a right angle do
        (Howe, 1974; Graybill and Wang, 1980). Weighted by their variances instead (Cochran and Cox, 1950) three seeds,
        whose spread is often underestimated, called one of two equal methods better 5.7 times of 100.

        Args:
            p: Two-sided.
            normal: Whether the units' quantile is the normal one, as a score test has it.
        """
        from scipy.special import stdtrit

        units = self.items if self.clusters is None else self.clusters
        unit_reach = -float(stdtrit(inf if normal else max(1, units - 1), p / 2))
        if self.seed_variance == 0:
            return unit_reach
        seed_reach = -float(stdtrit(self.seeds - 1, p / 2))
        squares = unit_reach**2 * self.unit_variance + seed_reach**2 * self.seed_variance
        return sqrt(squares / self.variance)


def spread(values: ArrayLike, *, clusters: Sequence[object] | None = None) -> Spread:
    """Returns how sure the mean of values is.

    The variance is what items and seeds each contribute, without what both share (Cameron, Gelbach and Miller, 2011),
    none of it below 0: what resampling items (or clusters) and seeds with replacement, each by itself, would spread
    (the pigeonhole bootstrap: Owen, 2007), without the drawing.

    Args:
        values: [items] of one seed, or [seeds, items].
        clusters: What each item came from (a template, an author, an article), where that was sampled, not the item.

    Raises:
        ValueError: There are no values, or another number of clusters than of items.
    """
    x = _grid(values)
    seeds, items = x.shape
    largest = float(np.abs(x).max())
    if (
        _SQUARED < largest < inf
    ):  # the perplexities of a model that an attack ruined: their squares are beyond all numbers
        measured = spread(x / largest, clusters=clusters)
        parts = (measured.unit_variance, measured.seed_variance)
        of_units, of_seeds = (part and part * largest * largest for part in parts)
        return replace(measured, unit_variance=of_units, seed_variance=of_seeds)
    mean = float(x.mean())
    labels = _labels(clusters, items)
    groups = int(labels.max()) + 1
    # Linearised: the mean is a ratio of cluster sums to cluster sizes.
    by_unit = np.stack([np.bincount(labels, weights=row) for row in x - mean])
    scale = groups / (groups - 1) / items**2 if groups > 1 else nan
    unit_variance = float((by_unit.mean(0) ** 2).sum()) * scale
    seed_variance = 0.0
    if seeds > 1:
        means = x.mean(1)
        left = by_unit - by_unit.mean(0) - np.outer(means - mean, np.bincount(labels))
        shared = float((left**2).sum()) * scale / (seeds * (seeds - 1))
        seed_variance = max(0.0, float(means.var(ddof=1)) / seeds - (0.0 if isnan(shared) else shared))
    return Spread(items, None if clusters is None else groups, seeds, unit_variance, seed_variance)


def _design_effect(measured: Spread, alone: float) -> float:
    """How many times the variance of independent answers, `alone`, the mean's is (Kish, 1965); never below 1."""
    if alone > 0:
        return max(1.0, measured.variance / alone)
    # Without any spread to measure it on, seeds and clusters count as one answer: they may say the same by necessity.
    return measured.seeds * measured.items / (measured.items if measured.clusters is None else measured.clusters)


def mean_interval(values: ArrayLike, *, clusters: Sequence[object] | None = None, confidence: float = 0.95) -> Interval:
    """Returns the interval of a mean over items and seeds: Wilson's of shares of 0 and 1, else Student's.

    It has no bounds (nan) where a single item or cluster was asked, whose spread is unknown; a share of one item has.

    Args:
        values: [items] of one seed, or [seeds, items].
        clusters: What each item came from, where that was sampled.
        confidence: That the interval holds the mean.
    """
    x, measured = _grid(values), spread(values, clusters=clusters)
    mean = float(x.mean())
    if np.isin(x, (0, 1)).all():
        if not measured.known:
            return wilson(mean, 1.0, confidence)  # one item or cluster, whatever its size
        plain = clusters is None and measured.seeds == 1
        effect = 1.0 if plain else _design_effect(measured, mean * (1 - mean) / x.size)
        n = x.size / effect
        return wilson(mean * n, n, reach=measured.reach(1 - confidence, normal=clusters is None))
    if not measured.known:
        return Interval(nan, nan)
    half = measured.reach(1 - confidence) * sqrt(measured.variance)
    return Interval(mean - half, mean + half)


def ratio_interval(
    top: ArrayLike, bottom: ArrayLike, *, clusters: Sequence[object] | None = None, confidence: float = 0.95
) -> tuple[float, Interval]:
    """Returns mean(top)/mean(bottom) with its interval, linear around it (the infinitesimal jackknife).

    Nan where mean(bottom) is 0, and no bounds where it may be: data that do not tell it from 0 bound no ratio.
    """
    x, y = _grid(top), _grid(bottom)
    below = float(y.mean())
    if below == 0:
        return nan, Interval(nan, nan)
    ratio = float(x.mean()) / below
    if 0 in mean_interval(y, clusters=clusters, confidence=confidence):
        return ratio, Interval(-inf, inf)
    measured = spread((x - ratio * y) / below, clusters=clusters)
    half = measured.reach(1 - confidence) * sqrt(measured.variance) if measured.known else nan
    return ratio, Interval(ratio - half, ratio + half)


@dataclass(frozen=True)
class PairedDifference:
    """How far two variants are apart on the same items and seeds, with all that its interval and its test need.

    Interval and test are one rule: for every confidence the interval excludes 0 exactly where p ≤ 1 − confidence.
    """

    difference: float
    """Mean of a − b over all items and seeds."""
    spread: Spread
    verdicts: tuple[float, float, float] | None
    """Of values 0 and 1: how often a alone was 1, b alone was, and out of how many pairs, all as if independent."""
    floor: float
    """No p may be below: what the exact test says, or the least it could say of so few items."""

    @property
    def p(self) -> float:
        """Two-sided, that there is no difference; nan of fewer than two items or clusters."""
        from scipy.optimize import brentq

        if not self.spread.known:
            return nan
        if self.verdicts:
            statistic = abs(_tango(0.0, *self.verdicts))
        else:
            error = sqrt(self.spread.variance)
            statistic = abs(self.difference) / error if error else inf if self.difference else 0.0
        if statistic == 0:
            return 1.0
        if self._reach(_LEAST_P) <= statistic:
            return max(self.floor, _LEAST_P)
        root: Any = brentq(lambda log: self._reach(exp(log)) - statistic, log(_LEAST_P), 0.0, xtol=1e-10)
        return max(self.floor, exp(root))

    def interval(self, confidence: float = 0.95) -> Interval:
        """Returns the interval of the difference: Tango's score interval for verdicts, else Student's."""
        if not self.spread.known:
            return Interval(nan, nan)
        reach = self._reach(1 - confidence)
        if self.verdicts:
            interval = tango(*self.verdicts, reach=reach)
        else:
            half = reach * sqrt(self.spread.variance)
            interval = Interval(self.difference - half, self.difference + half)
        # The score interval is a little narrower than the exact test allows: then the test has the last word.
        return interval if self.p <= 1 - confidence else _with_zero(interval)

    def _reach(self, p: float) -> float:
        return self.spread.reach(p, normal=self.verdicts is not None and self.spread.clusters is None)


def compare(a: ArrayLike, b: ArrayLike, *, clusters: Sequence[object] | None = None) -> PairedDifference:
    """Compares two variants that answered the same items.

    Verdicts of 0 and 1 go through Tango's score interval (1998), their counts divided by the design effect (Kish, 1965)
    where clusters or seeds make them depend on each other; of one seed and independent items the test is McNemar's
    exact one. Other values go through Student's t.

    Args:
        a: Values [items] of one seed, or [seeds, items].
        b: The other variant's, seed by seed and item by item.
        clusters: What each item came from (a template, an author, an article), where that was sampled, not the item.

    Raises:
        ValueError: The shapes differ, or hold nothing.
    """
    x, y = _grid(a), _grid(b)
    if x.shape != y.shape:
        raise ValueError(f"pairs are needed: values of shape {x.shape} and {y.shape}")
    seeds, items = x.shape
    difference = x - y
    mean, measured = float(difference.mean()), spread(difference, clusters=clusters)
    floor, verdicts = 2.0 ** (1 - items), None
    if np.isin(x, (0, 1)).all() and np.isin(y, (0, 1)).all():
        won, lost = float((difference == 1).sum()), float((difference == -1).sum())
        if clusters is None and seeds == 1:
            floor, effect = mcnemar(x[0], y[0]), 1.0
        else:
            effect = _design_effect(measured, ((won + lost) / x.size - mean**2) / x.size)
        verdicts = (won / effect, lost / effect, x.size / effect)
    return PairedDifference(mean, measured, verdicts, floor)


def tango(won: float, lost: float, n: float, *, reach: float | None = None, confidence: float = 0.95) -> Interval:
    """Returns Tango's score interval (1998) of (won − lost)/n, the difference of two paired proportions.

    Args:
        won: How many of the pairs are (1, 0); after a correction for dependence not a whole number.
        lost: How many are (0, 1).
        n: Of how many pairs.
        reach: How many standard errors the bounds lie away; by default the normal quantile of the confidence.
        confidence: That the interval holds the difference.
    """
    from scipy.optimize import brentq

    reach = NormalDist().inv_cdf(0.5 + confidence / 2) if reach is None else reach
    estimate = (won - lost) / n
    if isinf(reach):
        return Interval(-1.0, 1.0)

    def bound(side: float) -> float:
        """Finds where the statistic, which falls as the difference grows, has come `reach` away from 0."""

        def excess(difference: float) -> float:
            # Clipped, since at ±1 the variance vanishes and a root is looked for between finite values.
            return min(max(_tango(difference, won, lost, n), -1e9), 1e9) + side * reach

        return float(brentq(excess, estimate, side)) if side * excess(side) < 0 else side  # type: ignore[arg-type]

    return Interval(bound(-1.0), bound(1.0))


def _tango(difference: float, won: float, lost: float, n: float) -> float:
    """The score statistic of a difference: negative where it is larger than the estimate (Tango, 1998)."""
    rest = difference * (1 - difference)
    B = (2 * n - won + lost) * difference - won - lost
    share = (sqrt(max(0.0, B * B + 8 * n * lost * rest)) - B) / (4 * n)  # of pairs (0, 1), the likeliest
    variance = n * (2 * share + rest)
    gap = won - lost - n * difference
    if variance <= n * 1e-15:
        return 0.0 if abs(gap) <= n * 1e-12 else copysign(inf, gap)
    return gap / sqrt(variance)


@dataclass(frozen=True)
class Standing:
    """What is left of a comparison when it was one of several."""

    stands: bool
    q: float
    """p after the correction."""
    interval: Interval
    """At the confidence that the correction leaves: it excludes 0 exactly where the difference stands."""


def standings(comparisons: Sequence[PairedDifference], *, rate: float = 0.05) -> list[Standing]:
    """Says which of the comparisons of one verdict stand when they are taken together, as many as are given.

    Selected are Benjamini and Hochberg's (1995) discoveries at the rate; the R selected of m get intervals of
    confidence 1 − rate·R/m (Benjamini and Yekutieli, 2005), of which a share `rate` misses. The others get
    1 − rate·(R + 1)/m, the narrowest that holds 0 for all of them, so that no interval says what the correction
    denies. What could not be tested counts as no test.
    """
    adjusted = benjamini_hochberg([comparison.p for comparison in comparisons])
    selected = [q <= rate for q in adjusted]
    tested, discoveries = sum(not isnan(q) for q in adjusted), sum(selected)
    standings = []
    for comparison, q, stands in zip(comparisons, adjusted, selected, strict=True):
        level = rate * (discoveries if stands else min(tested, discoveries + 1)) / max(1, tested)
        interval = comparison.interval(1 - level)
        # p and q are rounded on different ways; where they meet, the correction decides.
        standings.append(Standing(stands, q, interval if stands else _with_zero(interval)))
    return standings


def items_needed(measured: Spread, apart: float, *, power: float = 0.8, confidence: float = 0.95) -> int | None:
    """Returns how many items like these would tell variants apart that differ by so much; None where only seeds would.

    The variance of the items falls with their number (with clusters: as many more clusters), that of the seeds stays.
    """
    left = _variance_wanted(apart, power, confidence) - measured.seed_variance
    if not (left > 0 and measured.unit_variance >= 0):
        return None
    return max(2, ceil(measured.items * measured.unit_variance / left))


def seeds_needed(measured: Spread, apart: float, *, power: float = 0.8, confidence: float = 0.95) -> int | None:
    """Returns how many seeds would, on these items; None where only more items would, or one seed tells no spread."""
    left = _variance_wanted(apart, power, confidence) - measured.unit_variance
    if not (left > 0 and measured.seed_variance > 0):
        return None
    return max(2, ceil(measured.seeds * measured.seed_variance / left))


def _variance_wanted(apart: float, power: float, confidence: float) -> float:
    """The variance of a mean at which a difference is found so often."""
    reach = NormalDist().inv_cdf(0.5 + confidence / 2) + NormalDist().inv_cdf(power)
    return (max(apart, 0.0) / reach) ** 2


def _with_zero(interval: Interval) -> Interval:
    if isnan(interval.low):  # `min` would take the 0, and make bounds of what has none
        return interval
    return Interval(min(0.0, interval.low), max(0.0, interval.high))


def _labels(clusters: Sequence[object] | None, items: int) -> NDArray[np.int64]:
    """Numbers the cluster of each item from 0; without clusters each item is its own."""
    if clusters is None:
        return np.arange(items)
    if len(clusters) != items:
        raise ValueError(f"a cluster for each item is needed: {items} items and {len(clusters)} clusters")
    return np.unique([str(cluster) for cluster in clusters], return_inverse=True)[1].astype(np.int64)


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


def true_positive_rate(scores: ArrayLike, positive: ArrayLike, false_positives: float) -> float:
    """Returns the share of positives that a threshold finds which so large a share of the negatives passes at most.

    Nan where one kind is missing. Of n negatives ⌊n·share⌋ may pass, so of fewer than 1/share none.
    """
    x, is_positive = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    negatives = np.sort(x[~is_positive])
    if np.isnan(x).any() or not len(negatives) or not is_positive.any():
        return nan
    as_high = len(negatives) - np.searchsorted(negatives, x[is_positive], side="left")
    return float((as_high <= int(false_positives * len(negatives))).mean())


def kolmogorov_smirnov(a: ArrayLike, b: ArrayLike) -> float:
    """Returns the exact two-sided p-value that two samples are of one continuous distribution; nan where one holds nan.

    The share of all ways to interleave the samples whose distribution functions come at least as far apart (Hodges,
    1958), by lattice paths: of those that reach (i, j), the share that has been outside already. With ties it is an
    upper bound.
    """
    # SciPy's exact p passes 1 by rounding for some samples with ties, and is then replaced by the limit law's.
    x, y = np.sort(_vector(a)), np.sort(_vector(b))
    if np.isnan(x).any() or np.isnan(y).any():
        return nan
    n, m = len(x), len(y)
    pooled = np.concatenate([x, y])
    furthest = int(np.abs(np.searchsorted(x, pooled, "right") * m - np.searchsorted(y, pooled, "right") * n).max())
    # The share outside rather than its complement, so that a tiny p-value keeps its digits.
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


def _grid(values: ArrayLike) -> Floats:
    """Values as [seeds, items]."""
    x = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if x.ndim != 2 or not x.size:
        raise ValueError(f"values of items, or of seeds and items, are needed, not of shape {x.shape}")
    return x


def _pair(a: ArrayLike, b: ArrayLike) -> tuple[Floats, Floats]:
    x, y = _vector(a), _vector(b)
    if len(x) != len(y):
        raise ValueError(f"pairs are needed: {len(x)} values and {len(y)}")
    return x, y

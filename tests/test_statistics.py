"""The statistics against known values, independent formulas, and their own coverage in simulation."""

import tracemalloc
from itertools import product
from math import comb, inf, isnan, sqrt
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spunge import statistics as S

verdicts = st.lists(st.integers(0, 1), min_size=2, max_size=40)
pairs = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=2, max_size=40)


@pytest.mark.parametrize(("n", "t"), [(2, 12.706204736), (3, 4.30265273), (11, 2.228138852), (121, 1.979930405)])
def test_the_interval_of_a_mean_is_as_wide_as_the_tables_of_student_say(n, t):
    values = np.random.default_rng(n).normal(size=n)
    interval = S.mean_interval(values)
    assert interval.high - values.mean() == pytest.approx(t * values.std(ddof=1) / sqrt(n), rel=1e-8)
    assert interval.low + interval.high == pytest.approx(2 * values.mean())


def test_the_spread_of_one_value_is_unknown():
    assert isnan(S.mean_interval([3.0]).low)


def test_wilson_known_value():
    interval = S.wilson(8, 10)  # Newcombe 1998 gives such values to four digits
    assert (interval.low, interval.high) == pytest.approx((0.49016, 0.94332), abs=1e-5)
    assert S.wilson(0, 0) == S.Interval(0.0, 1.0)


@given(n=st.integers(1, 300), share=st.floats(0, 1), confidence=st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_bounds_are_where_the_score_test_turns(n, share, confidence):
    successes = round(share * n)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    for bound in (interval := S.wilson(successes, n, confidence)).low, interval.high:
        if 1e-9 < bound < 1 - 1e-9:
            assert abs(successes / n - bound) == pytest.approx(z * sqrt(bound * (1 - bound) / n), abs=1e-9)
    assert 0 <= interval.low <= successes / n <= interval.high <= 1


@given(pairs)
def test_mcnemar_equals_the_sum_over_all_outcomes(rows):
    a, b = [x for x, _ in rows], [y for _, y in rows]
    won, lost = rows.count((1, 0)), rows.count((0, 1))
    n = won + lost
    expected = min(1.0, 2 * sum(comb(n, i) for i in range(min(won, lost) + 1)) / 2**n)
    assert S.mcnemar(a, b) == pytest.approx(expected, rel=1e-12)


def test_mcnemar_of_very_many_disagreements_does_not_underflow():
    a = [1] * 3000 + [0] * 2000
    p = S.mcnemar(a, [1 - x for x in a])
    assert 0 < p < 1e-40
    assert S.mcnemar([1] * 3000, [0] * 3000) == 0.0 or S.mcnemar([1] * 3000, [0] * 3000) < 1e-300


def test_mcnemar_refuses_what_is_no_verdict():
    with pytest.raises(ValueError, match="verdicts"):
        S.mcnemar([0.5], [1])


def test_a_multinomial_draw_is_the_same_in_law_as_resampling_rows():
    rng = np.random.default_rng(3)
    a, b = rng.integers(0, 2, 60), rng.integers(0, 2, 60)
    drawn = S._resampled_means((a - b).astype(float), 40_000, np.random.default_rng(0))
    rows = (a - b)[rng.integers(0, 60, (40_000, 60))].mean(1)
    assert drawn.mean() == pytest.approx(rows.mean(), abs=0.002)
    assert drawn.std() == pytest.approx(rows.std(), rel=0.02)
    assert np.quantile(drawn, [0.025, 0.5, 0.975]) == pytest.approx(np.quantile(rows, [0.025, 0.5, 0.975]), abs=0.018)


@settings(deadline=None)
@given(pairs)
def test_a_paired_difference_is_antisymmetric_and_reproducible(rows):
    a, b = [x for x, _ in rows], [y for _, y in rows]
    one, again, other = S.paired_difference(a, b), S.paired_difference(a, b), S.paired_difference(b, a)
    assert one == again
    assert one.difference == pytest.approx(-other.difference)
    assert one.p == pytest.approx(other.p)
    assert one.interval.low - 1e-12 <= one.difference <= one.interval.high + 1e-12


def test_pairing_narrows_what_moves_together():
    rng = np.random.default_rng(0)
    skill = rng.normal(size=400)
    a, b = skill + 0.1, skill + rng.normal(scale=0.05, size=400)
    result = S.paired_difference(a, b, draws=2000)
    assert result.interval.low > 0.08
    assert result.p < 0.01


@pytest.mark.parametrize("kind", ["paired", "mean", "wilson"])
def test_intervals_cover_the_truth_about_as_often_as_they_say(kind):
    rng = np.random.default_rng(1)
    truth, covered, runs = 0.1 if kind == "paired" else 0.6, 0, 400
    for run in range(runs):
        b = (rng.random(120) < 0.5).astype(float)
        a = np.where(rng.random(120) < 0.8, b, 1.0)  # P(a) = 0.6
        if kind == "paired":
            interval = S.paired_difference(a, b, draws=1000, seed=run).interval
        elif kind == "wilson":
            interval = S.wilson(a.sum(), len(a))
        else:
            interval = S.mean_interval(a)
        covered += truth in interval
    assert 0.91 <= covered / runs <= 0.985


def test_resampling_many_values_takes_little_memory():
    x = np.random.default_rng(0).normal(size=200_000)
    tracemalloc.start()
    S.paired_difference(x, np.zeros_like(x), draws=200)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150e6  # all 200 resamples at once are 640 MB


def test_the_relative_difference_is_of_ratios_of_the_same_resample():
    a, b = [1, 1, 0, 0] * 50, [1, 1, 1, 0] * 50
    relative, interval = S.relative_difference(a, b)
    assert relative == pytest.approx(0.5 / 0.75 - 1)
    assert relative in interval
    assert interval.high < 0
    same, none = S.relative_difference(b, b)
    assert (same, none) == (0.0, S.Interval(0.0, 0.0))


def test_a_relative_difference_to_nothing_is_unknown_or_unbounded():
    relative, interval = S.relative_difference([1, 0], [0, 0])
    assert isnan(relative)
    assert isnan(interval.low)
    _, wide = S.relative_difference([1, 1, 1, 1], [1, 0, 0, 0])
    assert wide.high == inf


def test_benjamini_hochberg_known_value():
    # the fifteen p values of the 1995 paper: four are discoveries at 5 %
    p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0]  # fmt: skip  # noqa: E501
    assert [value <= 0.05 for value in S.benjamini_hochberg(p)] == [True] * 4 + [False] * 11


@given(st.lists(st.floats(0, 1), max_size=12))
def test_benjamini_hochberg_equals_its_definition_in_any_order(p):
    m = len(p)
    ranked = sorted(p)
    expected = [min(min(1.0, m * ranked[j] / (j + 1)) for j in range(m) if ranked[j] >= value) for value in p]
    assert S.benjamini_hochberg(p) == pytest.approx(expected)


def test_benjamini_hochberg_keeps_what_was_not_tested():
    adjusted = S.benjamini_hochberg([0.01, float("nan"), 0.04])
    assert adjusted[0] == 0.02
    assert isnan(adjusted[1])
    assert adjusted[2] == 0.04


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=25))
def test_the_area_under_the_curve_counts_pairs(rows):
    positives, negatives = [s for s, p in rows if p], [s for s, p in rows if not p]
    area = S.area_under_roc([s for s, _ in rows], [p for _, p in rows])
    if not positives or not negatives:
        assert isnan(area)
    else:
        wins = [1.0 if x > y else 0.5 if x == y else 0.0 for x, y in product(positives, negatives)]
        assert area == pytest.approx(sum(wins) / len(wins))


@pytest.mark.parametrize("call", [lambda: S.paired_difference([1], [1, 0]), lambda: S.mean_interval([])])
def test_wrong_shapes_are_refused(call):
    with pytest.raises(ValueError, match="needed"):
        call()

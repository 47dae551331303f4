"""The statistics against known values, independent formulas, and their own coverage in simulation."""

from itertools import product
from math import comb, inf, isnan, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spunge import statistics as S

verdicts = st.lists(st.integers(0, 1), min_size=2, max_size=40)
pairs = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=2, max_size=40)


def test_quantiles_are_those_of_the_tables():
    assert S.normal_quantile(0.975) == pytest.approx(1.959963984540054, abs=1e-12)
    for degrees, expected in ((1, 12.706204736), (2, 4.30265273), (10, 2.228138852), (120, 1.979930405)):
        assert S.t_quantile(0.975, degrees) == pytest.approx(expected, rel=1e-8)
    assert S.t_quantile(0.025, 10) == pytest.approx(-2.228138852, rel=1e-8)


def test_wilson_known_value():
    interval = S.wilson(8, 10)  # Newcombe 1998 gives such values to four digits
    assert (interval.low, interval.high) == pytest.approx((0.49016, 0.94332), abs=1e-5)
    assert S.wilson(0, 0) == S.Interval(0.0, 1.0)


@given(n=st.integers(1, 300), share=st.floats(0, 1), confidence=st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_bounds_are_where_the_score_test_turns(n, share, confidence):
    successes = round(share * n)
    z = S.normal_quantile(0.5 + confidence / 2)
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


@pytest.mark.parametrize("kind", ["paired", "mean", "bootstrap", "wilson"])
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
            interval = S.mean_interval(a, method="bootstrap" if kind == "bootstrap" else "normal", draws=1000, seed=run)
        covered += truth in interval
    assert 0.91 <= covered / runs <= 0.985


def test_clusters_widen_the_interval_and_cover():
    rng = np.random.default_rng(2)
    covered, wide, narrow, runs = 0, 0.0, 0.0, 300
    for run in range(runs):
        effects = rng.normal(size=40)
        labels = np.repeat(np.arange(40), 10)
        values = effects[labels] + rng.normal(size=400)
        interval = S.cluster_bootstrap(values, labels.tolist(), draws=800, seed=run)
        plain = S.mean_interval(values)
        covered += 0.0 in interval
        wide, narrow = wide + interval.high - interval.low, narrow + plain.high - plain.low
    assert 0.89 <= covered / runs <= 0.985
    assert wide > 1.8 * narrow


def test_clusters_of_one_row_are_the_plain_bootstrap():
    x = np.random.default_rng(0).normal(size=200)
    clustered = S.cluster_bootstrap(x, list(range(200)))
    plain = S.mean_interval(x, method="bootstrap")
    assert (clustered.low, clustered.high) == pytest.approx((plain.low, plain.high), abs=0.01)


def test_the_two_way_bootstrap_covers_what_seeds_and_items_add():
    rng = np.random.default_rng(4)
    covered, runs = 0, 200
    for run in range(runs):
        values = rng.normal(size=(8, 1)) * 0.3 + rng.normal(size=(1, 60)) + rng.normal(size=(8, 60)) * 0.3
        covered += 0.0 in S.two_way_bootstrap(values, draws=400, seed=run)
    assert 0.88 <= covered / runs <= 1.0


def test_one_seed_gives_the_items_alone():
    x = np.random.default_rng(0).normal(size=(1, 300))
    one, items = S.two_way_bootstrap(x), S.mean_interval(x[0], method="bootstrap")
    assert (one.low, one.high) == pytest.approx((items.low, items.high), abs=0.01)


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


def test_non_inferiority_needs_the_whole_bound_inside_the_margin():
    rng = np.random.default_rng(0)
    b = (rng.random(2000) < 0.6).astype(float)
    a = np.where(rng.random(2000) < 0.01, 0.0, b)
    assert S.non_inferiority(a, b, margin=0.02).holds
    assert not S.non_inferiority(a, b, margin=0.005).holds
    with pytest.raises(ValueError, match="margin"):
        S.non_inferiority(a, b, margin=0)


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

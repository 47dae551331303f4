"""The statistics against known values, independent formulas, and their own coverage in simulation."""

import tracemalloc
from itertools import product
from math import comb, inf, isnan, log, sqrt
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import ttest_rel

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


def test_pairing_narrows_what_moves_together():
    rng = np.random.default_rng(0)
    skill = rng.normal(size=400)
    a, b = skill + 0.1, skill + rng.normal(scale=0.05, size=400)
    result = S.compare(a, b)
    assert result.interval().low > 0.08
    assert result.p < 0.01


@pytest.mark.parametrize("kind", ["paired", "mean", "wilson"])
def test_intervals_cover_the_truth_about_as_often_as_they_say(kind):
    rng = np.random.default_rng(1)
    truth, covered, runs = 0.1 if kind == "paired" else 0.6, 0, 400
    for _ in range(runs):
        b = (rng.random(120) < 0.5).astype(float)
        a = np.where(rng.random(120) < 0.8, b, 1.0)  # P(a) = 0.6
        if kind == "paired":
            interval = S.compare(a, b).interval()
        elif kind == "wilson":
            interval = S.wilson(a.sum(), len(a))
        else:
            interval = S.mean_interval(a)
        covered += truth in interval
    assert 0.91 <= covered / runs <= 0.985


@pytest.mark.parametrize("values", [np.r_[np.ones(13), np.zeros(27)], np.ones(40), np.zeros(40)])
def test_a_share_of_independent_answers_has_the_interval_of_wilson_whatever_it_is(values):
    found, theirs = S.mean_interval(values), S.wilson(values.sum(), 40)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high))
    # Clusters that are all of one mind count as so many answers.
    alike = S.mean_interval(np.repeat(values, 5), clusters=np.repeat(np.arange(40), 5).tolist())
    assert alike.high - alike.low >= theirs.high - theirs.low - 1e-9


def test_the_interval_of_a_mean_of_seeds_that_differ_is_wide_however_many_items():
    rng = np.random.default_rng(0)
    x = (rng.random((3, 5000)) < np.array([[0.2], [0.5], [0.8]])).astype(float)
    assert S.mean_interval(x).high - S.mean_interval(x).low > 0.6
    assert S.mean_interval(x[0]).high - S.mean_interval(x[0]).low < 0.03


def test_a_ratio_of_means_is_surer_than_either_where_both_move_together():
    a, b = [1, 1, 0, 0] * 50, [1, 1, 1, 0] * 50
    ratio, interval = S.ratio_interval(a, b)
    assert ratio == pytest.approx(0.5 / 0.75)
    assert ratio in interval
    assert interval.high < 1
    same, none = S.ratio_interval(b, b)
    assert (same, none) == (1.0, S.Interval(1.0, 1.0))


def test_a_ratio_to_nothing_is_unknown_or_unbounded():
    ratio, interval = S.ratio_interval([1, 0], [0, 0])
    assert isnan(ratio)
    assert isnan(interval.low)
    _, wide = S.ratio_interval([1.0, 2.0, 1.0, 3.0], [1.0, -0.5, 0.2, -0.3])
    assert (wide.low, wide.high) == (-inf, inf)


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


@pytest.mark.parametrize("call", [lambda: S.mcnemar([1], [1, 0]), lambda: S.mean_interval([])])
def test_wrong_shapes_are_refused(call):
    with pytest.raises(ValueError, match="needed"):
        call()


# ---- what a verdict rests on


def naive_tango(difference, won, lost, n):
    """The score statistic by maximising the likelihood over the share of (0, 1) numerically."""

    def loss(share):
        other = share + difference
        rest = 1 - share - other
        if min(share, other, rest) < 0:
            return inf
        parts = [(won, other), (lost, share), (n - won - lost, rest)]
        return -sum(count * log(p) if p > 0 else (0.0 if count == 0 else -inf) for count, p in parts)

    low, high = max(0.0, -difference), (1 - difference) / 2
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-12})
    share = min((low, high, float(found.x)), key=loss)
    variance = n * (2 * share + difference - difference**2)
    return (won - lost - n * difference) / sqrt(variance)


tables = st.integers(1, 60).flatmap(
    lambda n: st.integers(0, n).flatmap(lambda won: st.tuples(st.just(won), st.integers(0, n - won), st.just(n)))
)


@settings(max_examples=60, deadline=None)
@given(tables)
def test_tango_bounds_are_where_the_naive_score_test_turns(table):
    won, lost, n = table
    interval = S.tango(won, lost, n)
    assert -1 <= interval.low <= (won - lost) / n <= interval.high <= 1
    for bound, sign in ((interval.low, 1), (interval.high, -1)):
        if abs(bound) < 1 - 1e-6:
            assert sign * naive_tango(bound, won, lost, n) == pytest.approx(1.959964, abs=2e-3)


@given(tables)
def test_tango_is_antisymmetric_and_narrows_with_confidence(table):
    won, lost, n = table
    one, other, narrow = S.tango(won, lost, n), S.tango(lost, won, n), S.tango(won, lost, n, confidence=0.8)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=1e-9)
    assert one.low <= narrow.low <= narrow.high <= one.high


def test_tango_of_nothing_but_agreement_still_has_a_width():
    interval = S.tango(0, 0, 100)
    assert interval.low == pytest.approx(-interval.high)
    z = 1.959963984540054
    assert interval.high == pytest.approx(z**2 / (100 + z**2))


def naive_parts(d, labels):
    """The parts of the variance by loops over seeds and clusters."""
    seeds, items = len(d), len(d[0])
    mean = sum(map(sum, d)) / seeds / items
    groups = sorted(set(labels))
    scale = len(groups) / (len(groups) - 1) / items**2
    unit = shared = 0.0
    for group in groups:
        members = [i for i in range(items) if labels[i] == group]
        sums = [sum(row[i] for i in members) for row in d]
        unit += (sum(sums) / seeds - len(members) * mean) ** 2 * scale
        for row, one in zip(d, sums, strict=True):
            shared += (one - sum(sums) / seeds - len(members) * (sum(row) / items - mean)) ** 2
    means = [sum(row) / items for row in d]
    between = sum((m - mean) ** 2 for m in means) / (seeds - 1) / seeds if seeds > 1 else 0.0
    shared = shared * scale / seeds / (seeds - 1) if seeds > 1 else 0.0
    return unit, max(0.0, between - shared)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.lists(st.integers(0, 3), min_size=4, max_size=12), st.integers(0, 10**6))
def test_the_parts_of_the_variance_equal_loops_over_seeds_and_clusters(seeds, labels, seed):
    if len(set(labels)) < 2:
        return
    a, b = np.random.default_rng(seed).normal(size=(2, seeds, len(labels)))
    found = S.compare(a, b, clusters=labels)
    parts = naive_parts((a - b).tolist(), labels)
    assert (found.spread.unit_variance, found.spread.seed_variance) == pytest.approx(parts, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("items", [3, 4, 5, 11, 30])
def test_one_seed_of_scores_is_the_paired_t_test(items):
    a, b = np.random.default_rng(0).normal(size=(2, items))
    found, theirs = S.compare(a, b), ttest_rel(a, b)
    assert found.p == pytest.approx(max(theirs.pvalue, 2.0 ** (1 - items)), rel=1e-6)
    bounds = theirs.confidence_interval()
    assert found.p <= 0.05 or 0 in found.interval()
    if items > 5:
        assert (found.interval().low, found.interval().high) == pytest.approx((bounds.low, bounds.high))


grids = st.tuples(st.integers(1, 3), st.integers(2, 30)).flatmap(
    lambda shape: st.tuples(
        st.lists(st.integers(0, 1), min_size=2 * shape[0] * shape[1], max_size=2 * shape[0] * shape[1]).map(
            lambda values: np.array(values, dtype=float).reshape(2, *shape)
        ),
        st.booleans(),
        st.booleans(),
    )
)


@settings(max_examples=400, deadline=None)
@given(grids, st.sampled_from([0.8, 0.95, 0.99, 0.9999]))
def test_the_interval_excludes_nothing_where_the_test_finds_something(grid, confidence):
    """One rule: of verdicts and scores, with and without clusters and seeds, at every confidence."""
    (a, b), clustered, scores = grid
    if scores:
        a = a + np.linspace(0, 0.3, a.size).reshape(a.shape)
    clusters = [column % 3 for column in range(a.shape[1])] if clustered else None
    found = S.compare(a, b, clusters=clusters)
    if abs(found.p - (1 - confidence)) > 1e-7:
        assert (0 not in found.interval(confidence)) == (found.p < 1 - confidence)
    swapped = S.compare(b, a, clusters=clusters)
    assert swapped.p == pytest.approx(found.p)
    assert swapped.interval(confidence).low == pytest.approx(-found.interval(confidence).high, abs=1e-9)
    wide = found.interval(0.99999)
    assert wide.low <= found.interval(confidence).low <= found.interval(confidence).high <= wide.high


@pytest.mark.parametrize("values", [[1.0, 1.0], [0.5001, 0.5002]])
@pytest.mark.parametrize("seeds", [1, 3])
def test_few_items_are_few(values, seeds):
    found = S.compare([values] * seeds, np.zeros((seeds, 2)))
    assert found.p >= 0.5
    assert 0 in found.interval()


@pytest.mark.parametrize("seeds", [1, 3])
def test_one_cluster_or_item_tells_nothing(seeds):
    for found in (
        S.compare(np.ones((seeds, 30)), np.zeros((seeds, 30)), clusters=["a"] * 30),
        S.compare(np.ones((seeds, 1)), np.zeros((seeds, 1))),
        S.compare(np.full((seeds, 9), np.nan), np.zeros((seeds, 9))),
    ):
        assert isnan(found.p)
        assert isnan(found.interval().low)


@settings(deadline=None)
@given(pairs)
def test_verdicts_of_one_seed_have_the_exact_p_unless_the_interval_is_surer_still(rows):
    a, b = [x for x, _ in rows], [y for _, y in rows]
    found, exact = S.compare(a, b).p, S.mcnemar(a, b)
    assert found >= exact
    if exact > 0.001:
        assert found == pytest.approx(exact)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 5)), min_size=1, max_size=8))
def test_standings_are_the_discoveries_and_their_intervals_agree(tables):
    comparisons = []
    for won, lost in tables:
        a = [1.0] * won + [0.0] * lost + [1.0] * 10
        b = [0.0] * won + [1.0] * lost + [1.0] * 10
        comparisons.append(S.compare(a, b))
    standings = S.standings(comparisons)
    assert [each.q for each in standings] == S.benjamini_hochberg([each.p for each in comparisons])
    for comparison, standing in zip(comparisons, standings, strict=True):
        assert standing.stands == (standing.q <= 0.05) == (0 not in standing.interval)
        alone = comparison.interval()
        assert standing.interval.low <= alone.low + 1e-9
        assert standing.interval.high >= alone.high - 1e-9


def test_what_could_not_be_tested_counts_as_no_test():
    clear = S.compare([1] * 12, [0] * 12)
    alone, beside = S.standings([clear]), S.standings([clear, S.compare([1], [0])])
    assert beside[0] == alone[0]
    assert not beside[1].stands
    assert isnan(beside[1].q)
    assert S.standings([]) == []


def test_items_needed_tell_so_small_a_difference_apart():
    rng = np.random.default_rng(0)
    pilot = S.compare((rng.random(400) < 0.5).astype(float), (rng.random(400) < 0.5).astype(float))
    needed = S.items_needed(pilot.spread, 0.1)
    assert needed is not None
    found = sum(
        S.compare((rng.random(needed) < 0.6).astype(float), (rng.random(needed) < 0.5).astype(float)).p <= 0.05
        for _ in range(300)
    )
    assert 0.72 <= found / 300 <= 0.88
    unsteady = S.compare(np.array([[0.0] * 50, [1.0] * 50, [0.3] * 50]), np.zeros((3, 50)))
    assert S.items_needed(unsteady.spread, 0.01) is None
    assert S.seeds_needed(unsteady.spread, 0.4) in range(10, 40)
    assert S.seeds_needed(pilot.spread, 0.1) is None  # one seed tells no spread of seeds


def resampled(values, labels, draws, rng):
    """Means of seeds and clusters drawn with replacement, each by itself (the pigeonhole bootstrap)."""
    clusters = [np.flatnonzero(np.array(labels) == label) for label in sorted(set(labels))]
    means = []
    for _ in range(draws):
        rows = rng.integers(len(values), size=len(values))
        columns = np.concatenate([clusters[drawn] for drawn in rng.integers(len(clusters), size=len(clusters))])
        means.append(values[np.ix_(rows, columns)].mean())
    return np.array(means)


@pytest.mark.parametrize("seeds", [1, 8])
@pytest.mark.parametrize("size", [1, 4])
def test_the_variance_is_that_of_resampling_seeds_and_clusters(seeds, size):
    """Resampling n spreads √((n − 1)/n) too little, and counts what both share once more."""
    rng = np.random.default_rng(5)
    labels = np.repeat(np.arange(60), size).tolist()
    x = rng.normal(size=(seeds, 1)) * 0.3 + np.repeat(rng.normal(size=60), size) + rng.normal(size=(seeds, 60 * size))
    drawn = resampled(x, labels, 4_000, rng)
    found = S.spread(x, clusters=labels)
    bootstrap = found.unit_variance * 59 / 60 + found.seed_variance * (seeds - 1) / seeds
    assert drawn.std() == pytest.approx(sqrt(bootstrap), rel=0.08)


def test_many_items_take_little_memory():
    x = np.random.default_rng(0).normal(size=(2, 200_000))
    tracemalloc.start()
    S.ratio_interval(x, x + 10)
    S.compare(x, x + 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6


@pytest.mark.parametrize(
    "call",
    [
        lambda: S.compare([1, 0], [1]),
        lambda: S.compare([1, 0], [1, 0], clusters=["a"]),
        lambda: S.mean_interval([]),
    ],
)
def test_what_is_not_paired_is_refused(call):
    with pytest.raises(ValueError, match="needed"):
        call()


def test_kolmogorov_smirnov_of_ties_stays_a_probability():
    rng = np.random.default_rng(0)
    ps = [S.kolmogorov_smirnov(*rng.integers(0, 3, size=(2, n))) for n in (5, 7, 14) for _ in range(100)]
    assert all(0 < p <= 1 for p in ps)
    assert max(ps) == 1.0


def test_a_prevalence_is_corrected_for_the_reader_and_says_how_unsure_that_is():
    """Rogan and Gladen by hand; the interval holds the truth as often as it says where reader and sample are drawn."""
    value, _ = S.corrected_prevalence(30, 100, (80, 100), (90, 100)) or pytest.fail("it can be told")
    assert value == pytest.approx((0.3 + 0.9 - 1) / (0.8 + 0.9 - 1))
    value, interval = S.corrected_prevalence(0, 100, (80, 100), (90, 100)) or pytest.fail("it can be told")
    assert value == 0.0
    assert interval.low == 0.0
    assert S.corrected_prevalence(3, 10, (0, 0), (9, 10)) is None
    assert S.corrected_prevalence(3, 10, (1, 10), (9, 10)) is None  # no better than chance
    generator, hits = np.random.default_rng(0), 0
    for _ in range(2000):
        found = S.corrected_prevalence(
            generator.binomial(300, 0.2 * 0.8 + 0.8 * 0.1), 300, (generator.binomial(60, 0.8), 60),
            (generator.binomial(90, 0.9), 90),
        )  # fmt: skip
        hits += found is not None and 0.2 in found[1]
    assert hits / 2000 > 0.93


@pytest.mark.filterwarnings("error")
@given(
    st.lists(st.lists(st.floats(-5, 5), min_size=4, max_size=4), min_size=2, max_size=3),
    st.sampled_from([1e100, 1e139, 1e145, 1e150, 1e200, 1e300]),
)
def test_figures_beyond_all_squares_are_told_as_smaller_ones_or_not_at_all(rows, factor):
    x = np.array(rows)
    y = x[::-1] + 1.0
    small, large = S.compare(x, y), S.compare(x * factor, y * factor)
    interval = large.interval()
    if large.spread.known:
        assert [interval.low, interval.high] == pytest.approx(
            [end * factor for end in (small.interval().low, small.interval().high)], rel=1e-6
        )
        assert large.p == pytest.approx(small.p, rel=1e-6)
    else:
        assert factor > 1e145
        assert isnan(large.p)

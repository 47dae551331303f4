"""How well members are told from outsiders: areas, rates and shares against naive versions."""

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spunge.metrics import Metric
from spunge.report.artifacts import Suite
from spunge.report.membership import FALSE_POSITIVES, draws, leaks, resampled
from spunge.rows.items import FAMILIARITY, MEMBER
from spunge.statistics import area_under_roc, true_positive_rate

SUITE = Suite(
    suite="told", method="membership", goal="forget", attacks="asked", metrics=(Metric(FAMILIARITY, FAMILIARITY),)
)


def naive_area(scores: list[float], member: list[bool]) -> float:
    pairs = [(a, b) for a, m in zip(scores, member, strict=True) if m
             for b, n in zip(scores, member, strict=True) if not n]  # fmt: skip
    return sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs)


def naive_rate(scores: list[float], member: list[bool], share: float) -> float:
    mine = [s for s, m in zip(scores, member, strict=True) if m]
    others = [s for s, m in zip(scores, member, strict=True) if not m]
    thresholds = [t for t in [-math.inf, *scores] if sum(s > t for s in others) <= share * len(others)]
    return max(sum(s > t for s in mine) / len(mine) for t in thresholds)


rows = st.lists(st.tuples(st.integers(0, 6).map(float), st.booleans()), min_size=2, max_size=30).filter(
    lambda rows: len({member for _, member in rows}) == 2
)


@given(rows, st.sampled_from([0.0, 0.01, 0.1, 0.25, 0.5]))
def test_a_rate_is_the_best_of_all_thresholds(rows, share):
    scores, member = map(list, zip(*rows, strict=True))
    assert true_positive_rate(scores, member, share) == pytest.approx(naive_rate(scores, member, share))


@given(rows, st.integers(0, 5))
def test_a_draw_is_what_the_drawn_rows_come_to(rows, seed):
    scores, member = (np.array(each) for each in zip(*rows, strict=True))
    weights = draws(member, np.random.default_rng(seed))[:5]
    areas, rates = resampled(scores, member, weights)
    for area, rate, times in zip(areas, rates, weights.astype(int), strict=True):
        drawn, kinds = np.repeat(scores, times).tolist(), np.repeat(member, times).tolist()
        assert area == pytest.approx(naive_area(drawn, kinds), abs=1e-6)
        assert rate == pytest.approx(naive_rate(drawn, kinds, FALSE_POSITIVES), abs=1e-6)


def table(models: dict[str, float], *, n: int = 150, seed: int = 0) -> pl.LazyFrame:
    """Every model's familiarity with n members of two groups and n outsiders; members are so much more familiar."""
    draw = np.random.default_rng(seed)
    noise = draw.normal(size=2 * n)
    rows = []
    for variant, apart in models.items():
        for row in range(2 * n):
            member = row < n
            group = '{"group": "%s"}' % ("a" if row % 2 else "b") if member else "{}"
            value = noise[row] + draw.normal() * 0.3 + apart * member * (1.0 if row % 2 else 0.5)
            for metric, measured in ((FAMILIARITY, value), (MEMBER, float(member))):
                rows.append(("told", "asked @ loss", f"{row:016x}", group, metric, measured, None, variant, 0))
    names = ["suite", "task", "item", "attributes", "metric", "value", "text", "variant", "seed"]
    return pl.LazyFrame(rows, schema=names, orient="row")


def told(models: dict[str, float], **settings) -> dict[tuple[str, str | None], dict]:
    found = leaks([SUITE], table(models, **settings))
    return {(row["variant"], row["attribute_value"]): row for row in found}


def test_what_is_left_lies_between_the_base_model_and_chance():
    rows = told({"base": 2.0, "joint": 0.7, "gone": 0.0})
    base, joint, gone = (rows[name, None] for name in ("base", "joint", "gone"))
    assert base["auc"] > joint["auc"] > gone["auc"]
    assert base["auc_low"] < base["auc"] < base["auc_high"]
    assert base["tpr"] > joint["tpr"] >= 0
    assert base["left"] is None
    assert 0.1 < joint["left_low"] < joint["left"] < joint["left_high"] < 0.9
    assert gone["left_low"] < 0 < gone["left_high"]
    assert (joint["members"], joint["outsiders"]) == (150, 150)
    assert rows["joint", "a"]["auc"] > rows["joint", "b"]["auc"]
    assert (rows["joint", "a"]["members"], rows["joint", "a"]["outsiders"]) == (75, 150)


def test_an_oracle_is_what_nothing_left_means():
    # These outsiders are strange to every model: chance would blame the oracle for it.
    rows = told({"base": 2.0, "joint": 0.8, "oracle": 0.8})
    assert rows["joint", None]["auc_low"] > 0.5
    assert rows["joint", None]["left_low"] < 0.05
    assert rows["joint", None]["left"] == pytest.approx(0, abs=0.15)
    assert rows["oracle", None]["left"] is None


def test_a_base_model_that_tells_nothing_leaves_nothing_to_measure():
    assert told({"base": 0.0, "joint": 0.0}, seed=1)["joint", None]["left"] is None


def test_a_model_that_gave_nan_has_no_row():
    items = table({"base": 2.0, "joint": 1.0})
    broken = pl.when(
        (pl.col("variant") == "joint") & (pl.col("item") == f"{3:016x}") & (pl.col("metric") == FAMILIARITY)
    )
    rows = list(leaks([SUITE], items.with_columns(broken.then(None).otherwise(pl.col("value")).alias("value"))))
    assert {row["variant"] for row in rows} == {"base"}


@given(st.integers(0, 20))
def test_the_interval_covers_what_a_large_sample_says(seed):
    draw = np.random.default_rng(1000 + seed)
    member = np.arange(400) < 200
    scores = draw.normal(size=400) + member
    areas, _ = resampled(scores, member, draws(member, np.random.default_rng(seed)))
    # DeLong et al., 1988: the variance from each row's own placement.
    mine, others = scores[member], scores[~member]
    over = np.array([(one > others).mean() for one in mine])
    under = np.array([(mine > one).mean() for one in others])
    expected = math.sqrt(over.var(ddof=1) / len(mine) + under.var(ddof=1) / len(others))
    assert areas.std() == pytest.approx(expected, rel=0.15)
    assert areas.mean() == pytest.approx(area_under_roc(scores, member), abs=0.01)

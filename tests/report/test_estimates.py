"""Differences of perplexities, against drawing the texts anew."""

from __future__ import annotations

import numpy as np
import pytest

from spunge.report.answers import Answers, Scope
from spunge.report.estimates import difference
from spunge.statistics import standings

TEXTS = 60


def asked(ratio: float, noise: float, seed: int = 0) -> Answers:
    """Texts of unlike difficulty, on which one model has so many times the other's perplexity."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(10, 60, TEXTS).astype(float)
    base = generator.normal(4.5, 1.2, TEXTS)
    other = base + np.log(ratio) + generator.normal(0, noise, TEXTS)
    everything = Scope("text", None, None, np.arange(TEXTS))
    return Answers(
        suite="texts", metric="perplexity", models=[("spunge", 0), ("base", 0)],
        values=np.stack([other * tokens, base * tokens]), weights=np.stack([tokens, tokens]),
        items=[("text", str(index)) for index in range(TEXTS)], scopes=[everything],
    )  # fmt: skip


def perplexity(answers: Answers, row: int, chosen: np.ndarray) -> float:
    assert answers.weights is not None
    return float(np.exp(answers.values[row][chosen].sum() / answers.weights[row][chosen].sum()))


def test_of_unlike_texts_a_small_ratio_stands_and_its_interval_is_the_bootstraps() -> None:
    answers = asked(1.15, 0.3)
    measured = difference(answers, [(0, 1)], np.arange(TEXTS))
    assert measured is not None
    assert measured.relative_ends is not None
    generator = np.random.default_rng(1)
    drawn = [generator.integers(0, TEXTS, TEXTS) for _ in range(4000)]
    ratios = [perplexity(answers, 0, chosen) / perplexity(answers, 1, chosen) for chosen in drawn]
    low, high = np.quantile(ratios, [0.025, 0.975])
    assert measured.relative_ends == pytest.approx((low - 1, high - 1), abs=0.02)
    everything = np.arange(TEXTS)
    apart = perplexity(answers, 0, everything) - perplexity(answers, 1, everything)
    assert measured.value == pytest.approx(apart)
    assert measured.relative == pytest.approx(apart / perplexity(answers, 1, everything))
    (standing,) = standings([measured.paired])
    ends = measured.ends(standing.interval)
    assert standing.stands
    assert ends is not None
    assert 0 < ends[0] < measured.value < ends[1]
    assert ends == pytest.approx([perplexity(answers, 1, everything) * end for end in measured.relative_ends])


def test_models_that_are_alike_are_told_apart_as_often_as_the_level_says() -> None:
    found = [difference(asked(1.0, 0.3, seed), [(0, 1)], np.arange(TEXTS)) for seed in range(400)]
    told = sum(one is not None and one.paired.p < 0.05 for one in found)
    assert 8 <= told <= 34  # of 400 at 5 %: within three standard deviations of 20


def test_a_perplexity_beyond_all_numbers_is_compared_with_nothing() -> None:
    answers = asked(1.0, 0.1)
    ruined = answers.values * np.array([[1e4], [1.0]])
    assert difference(Answers(**{**vars(answers), "values": ruined}), [(0, 1)], np.arange(TEXTS)) is None

"""A slice of the published simulation: intervals hold the truth, verdicts rarely cry wolf, and find what is there."""

import importlib
from dataclasses import replace
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def simulation():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
        yield importlib.import_module("verdict_coverage")


@pytest.mark.parametrize(("items", "clusters", "seeds"), [(20, None, 1), (100, 5, 1), (100, 20, 3), (300, None, 5)])
@pytest.mark.parametrize("case", ["30 of 40 %", "3 of 5 %", "skewed"])
def test_intervals_hold_the_truth(simulation, items, clusters, seeds, case):
    rates, skewed = simulation.CASES[case]
    design = simulation.Design(items, clusters, seeds, rates, skewed)
    # Two points below the 93 % published, as 400 repeats are that noisy; they are the same every time.
    assert simulation.coverage(design, 400, 1, of_these_seeds=seeds == 1) >= 0.91


@pytest.mark.parametrize(("items", "clusters", "seeds"), [(20, None, 3), (100, 5, 5), (100, None, 1)])
def test_verdicts_over_three_suites_rarely_cry_wolf(simulation, items, clusters, seeds):
    design = simulation.Design(items, clusters, seeds, (0.4, 0.4), seed_share=0.0 if seeds == 1 else 0.01)
    assert simulation.false_alarms(design, 300, 2) <= 0.06


def test_a_difference_of_two_items_in_ten_is_found_with_a_hundred_items(simulation):
    design = simulation.Design(100, None, 5, (0.2, 0.4))
    assert simulation.power(design, 200, 3) >= 0.8
    assert simulation.power(replace(design, items=20), 200, 3) < 0.8


def test_one_seed_does_not_speak_for_a_method(simulation):
    """What is said of one seed holds for its models; over seeds the truth lies outside more often."""
    design = simulation.Design(300, None, 1, (0.3, 0.4), seed_share=0.05)
    assert simulation.coverage(design, 300, 4, of_these_seeds=True) >= 0.92
    assert simulation.coverage(design, 300, 4) < 0.85

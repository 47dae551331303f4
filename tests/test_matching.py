"""Budgets of damage on lines whose damage is known."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spunge.matching import match

BUDGETS = (0.01, 0.03, 0.1)


def counted(damage_at):
    asked = []

    def ask(scale):
        asked.append(scale)
        return damage_at(scale)

    return ask, asked


@settings(max_examples=200)
@given(st.floats(1e-3, 1e3), st.floats(0.5, 4), st.lists(st.floats(1e-4, 1.0), min_size=1, max_size=4))
def test_a_smooth_damage_is_matched_within_the_tolerance(size, power, budgets):
    ask, asked = counted(lambda scale: size * scale**power)
    matches, line = match(ask, budgets)
    assert len(asked) == len(set(asked)) == len(line) - 1  # no λ twice; 0 is known
    for found, budget in zip(matches, budgets, strict=True):
        assert found.budget == budget
        assert found.damage == line[found.scale]
        if size * 8**power < 0.95 * budget:
            assert (found.status, found.scale) == ("unreached", 8.0)
        else:
            assert found.status == "matched"
            assert 0.95 * budget <= found.damage <= budget


def test_a_divergence_is_matched_in_few_questions():
    ask, asked = counted(lambda scale: 0.4 * scale**2 / (1 + 0.1 * scale))
    matches, _ = match(ask, BUDGETS)
    assert all(found.status == "matched" for found in matches)
    assert len(asked) <= 7


@settings(max_examples=100)
@given(st.floats(0.02, 3), st.floats(0, 0.1), st.floats(0.005, 0.2))
def test_one_budget_takes_a_few_questions(size, bend, budget):
    ask, asked = counted(lambda scale: size * scale**2 * math.exp(-bend * scale))
    (found,), _ = match(ask, [budget], longest=4.0)
    assert found.status == "unreached" or len(asked) <= 5  # 2 to 4 in 20,000 draws; near its peak a curve takes 6


@pytest.mark.parametrize("order", [(0.01, 0.03, 0.1), (0.1, 0.01, 0.03)])
def test_the_order_of_the_budgets_does_not_matter(order):
    found = {each.budget: each for each in match(lambda scale: 0.3 * scale**2, order)[0]}
    expected = {each.budget: each for each in match(lambda scale: 0.3 * scale**2, BUDGETS)[0]}
    assert found == expected


@settings(max_examples=100)
@given(st.floats(0.05, 7.5), st.floats(0.2, 5))
def test_a_jump_over_the_budget_is_said_and_the_point_below_it_taken(at, height):
    ask, asked = counted(lambda scale: 0.0 if scale < at else height)
    (found,), _ = match(ask, [0.1])
    assert (found.status, found.damage) == ("stepped", 0.0)
    assert found.scale < at <= found.scale * 1.0011
    assert len(asked) < 60


def test_steps_are_matched_as_nearly_as_they_allow():
    steps = match(lambda scale: math.floor(scale * 10) / 100, [0.055])[0][0]
    assert (steps.status, steps.damage) == ("stepped", 0.05)
    exact = match(lambda scale: math.floor(scale * 10) / 100, [0.05])[0][0]
    assert (exact.status, exact.damage) == ("matched", 0.05)


def test_a_model_that_breaks_altogether_is_matched_before_it_does():
    (found,), line = match(lambda scale: math.inf if scale > 0.7 else 0.2 * scale**2, [0.05])
    assert found.status == "matched"
    assert line[1.0] == math.inf


def test_of_several_crossings_the_lowest_met_counts():
    def wavy(scale):
        return 0.2 * scale + 0.15 * math.sin(6 * scale)

    (found,), line = match(wavy, [0.2])
    assert found.status == "matched"
    assert all(damage <= 0.2 for scale, damage in line.items() if scale <= found.scale)


def test_a_variant_that_changes_nothing_never_reaches_a_budget():
    (found,), line = match(lambda scale: 0.0, [0.01], longest=4.0)
    assert (found.status, found.scale, found.damage) == ("unreached", 1.0, 0.0)  # left as it is
    assert set(line) == {0.0, 1.0, 2.0, 4.0}


@pytest.mark.parametrize(("damage", "budgets"), [(math.nan, [0.1]), (0.1, [0.0])])
def test_what_is_no_damage_or_no_budget_is_refused(damage, budgets):
    with pytest.raises(ValueError, match=r"number|above 0"):
        match(lambda scale: damage, budgets)

"""What is searched of a method stands on its own fields, of one from outside the package as well."""

from __future__ import annotations

import json
from typing import Annotated

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from spunge.auto.spaces import space_of
from spunge.auto.trials import method_class
from spunge.errors import RecipeError
from spunge.interfaces import Unlearner
from spunge.recipe.schema import methods
from spunge.settings import SearchChoice, SearchRange
from spunge.unlearners import NPO, AdaptiveRMU


class FromOutside(Unlearner):
    strength: Annotated[float, SearchRange(0.5, 2.0)] = 1.0
    depth: Annotated[int, SearchRange(0.25, 0.75, times="layers")] = 2
    kind: Annotated[str, SearchChoice(("hard", "soft"))] = "soft"
    always: Annotated[bool, SearchChoice((True,))] = False
    left_alone: int = 3

    def unlearn(self, base, forget, retain, work):
        raise NotImplementedError


def test_a_method_from_outside_declares_its_own_space():
    space = space_of("mine:FromOutside", FromOutside, layers=8)
    assert {one.name: (one.low, one.high, one.integer) for one in space.dimensions if not one.choices} == {
        "strength": (0.5, 2.0, False),
        "depth": (2, 6, True),
    }
    assert [one.choices for one in space.dimensions if one.choices] == [('"hard"', '"soft"')]
    assert space.fixed == {"always": True}
    assert space.first == {
        "mine:FromOutside.strength": 1.25,
        "mine:FromOutside.depth": 4,
        "mine:FromOutside.kind": '"hard"',
    }


@given(layers=st.integers(1, 120), seed=st.integers(0, 99), name=st.sampled_from(sorted(methods()["unlearn"])))
def test_whatever_is_drawn_of_any_method_is_a_valid_setting_of_it(layers: int, seed: int, name: str):
    kind = method_class(name)
    space = space_of(name, kind, layers)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)).ask()
    drawn = {one.name: one.suggest(trial, name) for one in space.dimensions}
    kind.model_validate({**space.fixed, **drawn})
    first = {
        name.partition(".")[2]: json.loads(value) if isinstance(value, str) else value
        for name, value in space.first.items()
    }
    kind.model_validate({**space.fixed, **first})


def test_the_learning_rate_of_steering_is_searched_and_reaches_what_a_small_model_needs():
    rate = next(one for one in space_of("adaptive_rmu", AdaptiveRMU, 30).dimensions if one.name == "learning_rate")
    assert rate.low <= 1e-4
    assert rate.high >= 1e-3
    assert rate.log


def test_declarations_change_neither_the_schema_nor_what_is_refused():
    assert NPO.model_json_schema()["properties"]["beta"]["exclusiveMinimum"] == 0
    with pytest.raises(ValidationError, match="greater than 0"):
        NPO(beta=0)
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        AdaptiveRMU(layer=-1)


def test_an_unknown_method_is_named_with_those_that_there_are():
    with pytest.raises(RecipeError, match=r"--methods rnu: no such method; there are .*npo"):
        method_class("rnu")

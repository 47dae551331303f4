"""Overrides reach every setting, whatever it is called, and those that reach none are named."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_reading import RECIPE

from spunge.errors import RecipeError
from spunge.recipe import overrides, reading
from spunge.recipe.paths import dotted, undotted


def test_overrides_win() -> None:
    recipe = reading.parse(
        RECIPE, overrides=["unlearn.alpha=3", "evaluate.0.suite=other", "unlearn.update_layers=[1,2]"]
    )
    assert recipe.unlearn.dump()["alpha"] == 3
    assert recipe.unlearn.dump()["update_layers"] == [1, 2]
    assert recipe.evaluate[0].suite == "other"


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("Mexican-American", "Mexican-American"),
        ("LGBTQ+", "LGBTQ+"),
        ("中文", "中文"),
        ('"physical disability"', "physical disability"),
        ("'physical disability'", "physical disability"),
        ('"v1.2"', "v1.2"),
        ('"a=b"', "a=b"),
        (r'"the \"others\""', 'the "others"'),
        ('""', ""),
    ],
)
def test_a_subset_of_any_name_is_reached(key: str, name: str) -> None:
    recipe = reading.parse(RECIPE, overrides=[f"subsets.{key}.alpha=7"])
    assert recipe.subset_unlearner(name).dump()["alpha"] == 7
    with pytest.raises(RecipeError, match=r"^override .*alph: unknown setting; did you mean 'alpha'"):
        reading.parse(RECIPE, overrides=[f"subsets.{key}.alph=7"])


@given(st.lists(st.text(), min_size=1, max_size=4))
def test_a_path_reads_back_as_it_was_written(keys: list[str]) -> None:
    assert undotted(dotted(keys)) == tuple(keys)
    word = f"merge.{dotted(keys)}=[1, x]"
    assert overrides.split(word) == (("merge", *keys), "[1, x]")
    settings: Any = overrides.parse([word])["merge"]
    for key in keys:
        settings = settings[key]
    assert settings == [1, "x"]


@pytest.mark.parametrize("word", ["./a=b", "/tmp/a=b", "runs/a=b", "../v1.2=x", "tv", "Model=x", "a..b=1", "a b=1"])
def test_paths_are_no_settings(word: str) -> None:
    assert not overrides.is_setting(word)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("unlearn.alpha=-3", r"override 'unlearn\.alpha=-3': unlearn\.alpha: .*greater than or equal to 0"),
        ("unlearn.alhpa=3", r"override .*unknown setting; did you mean 'alpha'"),
        ("unlearn.alpha=[", r"the value:1:2: not YAML"),
        ("unlearn.alpha=.nan", r"must be a finite number, not \.nan"),
        ("name.x=1", r"'name' is a plain value"),
        ("evaluate.7.suite=x", r"'7' is not the number of an entry"),
        ("evaluate.².suite=x", r"'²' is not the number of an entry"),
        ("alpha", r"'alpha' is not a setting"),
        ("subsets.physical disability.alpha=2", r"is not a setting: write key=value, .*with spaces"),
        (r'subsets."\x".alpha=2', r"a quoted name in it cannot be read"),
    ],
)
def test_wrong_overrides_are_named(word: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as raised:
        reading.parse(RECIPE, overrides=[word])
    assert "\n" not in str(raised.value)


def test_the_last_of_two_overrides_is_blamed() -> None:
    words = ["merge={method: ties, density: 0.1}", "merge.density=2"]
    with pytest.raises(RecipeError, match=r"^override 'merge\.density=2': merge\.density: "):
        reading.parse(RECIPE, overrides=words)
    with pytest.raises(RecipeError, match=r"^override 'merge=\{method: ties, densty: 2\}': merge\.densty: "):
        reading.parse(RECIPE, overrides=["merge.density=0.1", "merge={method: ties, densty: 2}"])

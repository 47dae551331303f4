"""Splitting: values, policies, expressions, random."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spunge.data import Corpus
from spunge.errors import DataError
from spunge.interfaces import Splitter, Work
from spunge.language_model import LanguageModel, Resident
from spunge.split import AtRandom, ByColumn, ByExpression

BASE = LanguageModel(id="none")


def split(splitter: Splitter, values: list, seed: int = 0) -> list[tuple[str, ...]]:
    rows = Corpus(pl.DataFrame({"text": ["x"] * len(values), "group": values}, strict=False))
    return splitter.split(rows, BASE, Work(Resident(), Path(), Path(), seed))


def test_every_value_is_a_subset() -> None:
    assert split(ByColumn(column="group"), ["b", "a", "b"]) == [("b",), ("a",), ("b",)]


def test_values_are_grouped_and_renamed() -> None:
    splitter = ByColumn(column="group", values={"m": ["mexican", "mexican folks"], "w": "women"})
    assert split(splitter, ["mexican folks", "women", "mexican", "other"]) == [("m",), ("w",), ("m",), ()]
    own = splitter.model_copy(update={"others": "own"})
    assert split(own, ["mexican folks", "women", "mexican", "other"])[3] == ("other",)


def test_values_may_be_numbers() -> None:
    assert split(ByColumn.model_validate({"column": "group", "values": {"a": [0, 1]}}), [0, 1, 2]) == [
        ("a",),
        ("a",),
        (),
    ]


@pytest.mark.parametrize(("several", "expected"), [("every", ("a", "b")), ("first", ("a",)), ("drop", ())])
def test_rows_with_several_values(several: str, expected: tuple) -> None:
    splitter = ByColumn(column="group", several=several)  # pyright: ignore[reportArgumentType]
    assert split(splitter, [["a", "b"], ["a"]]) == [expected, ("a",)]
    assert split(splitter, ['["a", "b"]', "a"]) == [expected, ("a",)]


@pytest.mark.parametrize(("null", "expected"), [("drop", ()), ("own", ("null",))])
def test_rows_without_a_value(null: str, expected: tuple) -> None:
    splitter = ByColumn(column="group", null=null)  # pyright: ignore[reportArgumentType]
    assert split(splitter, ["a", None]) == [("a",), expected]


@pytest.mark.parametrize(
    ("splitter", "values", "message"),
    [
        (ByColumn(column="grup"), ["a"], "no column 'grup'; columns are text, group"),
        (ByColumn(column="group"), ["a", None], "row 2 has no 'group'"),
        (ByColumn(column="group", values={"x": "zzz"}), ["a"], "no row has 'zzz'.*its values are 'a'"),
        (ByColumn(column="group", several="error"), [["a", "b"]], "row 1 has several values"),
        (ByColumn(column="group", values={"x": "a"}, others="error"), ["a", "b"], "row 2 has 'b'"),
        (ByExpression(subsets={"x": "nothing > 1"}), ["a"], "cannot evaluate 'nothing > 1'"),
        (ByExpression(subsets={"x": "\"group\" || 'x'"}), ["a"], "not true or false"),
        (AtRandom(sizes=[2, 2]), ["a"] * 3, "4 rows are asked for"),
    ],
)
def test_mistakes_are_named(splitter: Splitter, values: list, message: str) -> None:
    with pytest.raises(DataError, match=message):
        split(splitter, values)


def test_expressions() -> None:
    splitter = ByExpression(subsets={"low": '"group" < 3', "even": '"group" % 2 = 0'})
    assert split(splitter, [1, 2, 4, 5, None]) == [("low",), ("low", "even"), ("even",), (), ()]
    assert split(splitter.model_copy(update={"several": "first"}), [2]) == [("low",)]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 3), st.integers(0, 1000))
def test_random_subsets_have_their_sizes(sizes: list[int], more: int, seed: int) -> None:
    splitter, values = AtRandom(sizes=sizes), ["a"] * (sum(sizes) + more)
    placed = split(splitter, values, seed)
    assert placed == split(splitter, values, seed)
    assert [placed.count((f"random_{number}",)) for number, _ in enumerate(sizes, 1)] == sizes
    assert placed.count(()) == more

"""Splitting: values, policies, expressions, random."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import comb
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spunge.errors import DataError
from spunge.evaluators.toxicity import Classifier
from spunge.interfaces import Splitter, Work
from spunge.recipe import schema
from spunge.rows.sources import Corpus, Source, load_corpus
from spunge.run import pipeline
from spunge.splitters import AtRandom, ByClassifier, ByCluster, ByColumn, ByExpression, ByFunction, clustering
from spunge.weights.language_model import LanguageModel, Resident

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


_CELLS = st.one_of(
    st.lists(st.sampled_from([None, "", "a", "b", '["a", "c"]', "[", "1"]), min_size=1),
    st.lists(st.sampled_from([None, 0.0, 1.0, 1.5, float("nan")]), min_size=1),
    st.lists(st.sampled_from([None, True, False]), min_size=1),
    st.lists(st.lists(st.sampled_from(["a", "b", "1"]), max_size=3), min_size=1),
    st.lists(st.fixed_dictionaries({"name": st.sampled_from(["a", "b"])}), min_size=1),
)


@given(cells=_CELLS, several=st.sampled_from(["every", "first", "drop"]))
def test_a_row_goes_where_it_would_go_alone(cells: list, several: str) -> None:
    splitter = ByColumn.model_validate({"column": "group", "several": several, "null": "own"})
    assert split(splitter, cells) == [split(splitter, [cell])[0] for cell in cells]


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


def test_toxigens_spellings_are_one_group_and_an_unknown_one_is_refused() -> None:
    splitter = ByColumn(column="group", read_as="toxigen_group", values={"pd": "physical_disability", "w": "women"})
    assert split(splitter, ["physical_dis", "folks with physical disabilities", "women", "jewish folks"]) == [
        ("pd",), ("pd",), ("w",), (),
    ]  # fmt: skip
    with pytest.raises(DataError, match="group 'martian folks' is none of ToxiGen's"):
        split(splitter, ["martian folks"])


def adjusted_rand_index(left: Sequence[object], right: Sequence[object]) -> float:
    """Hubert and Arabie 1985, by counting pairs."""
    both, ones, others = (Counter(each) for each in (zip(left, right, strict=True), left, right))
    together, a, b = (sum(comb(n, 2) for n in counts.values()) for counts in (both, ones, others))
    expected = a * b / comb(len(left), 2)
    return (together - expected) / ((a + b) / 2 - expected)


LAB = LanguageModel(id="lab:model")


@pytest.mark.parametrize("k", [2, None])
def test_clusters_of_the_embedded_world_are_its_true_attribute(k: int | None, tmp_path: Path) -> None:
    forget = load_corpus([Source(path="lab:knowledge/forget.jsonl")])
    forget = forget.select(range(0, len(forget), max(len(forget) // 200, 1)))
    work = Work(Resident(), tmp_path, tmp_path, 0)
    found = ByCluster(k=k).split(forget, LAB, work)
    assert found == ByCluster(k=k, batch_size=3).split(forget, LAB, work)
    assert adjusted_rand_index(found, forget.rows["domain"].to_list()) == 1


@given(
    points=st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=4, max_size=30, unique=True),
    k=st.integers(2, 4),
)
def test_clusters_are_a_partition_and_the_silhouette_is_its_definition(points: list[tuple[int, int]], k: int) -> None:
    rows = np.array(points, dtype=float)
    clusters = clustering.k_means(rows, k, seed=0)
    sizes = np.bincount(clusters, minlength=k)
    assert (sizes > 0).all()
    assert list(sizes) == sorted(sizes, reverse=True)
    widths = []
    for index, point in enumerate(rows):
        apart = {
            c: [np.linalg.norm(point - rows[j]) for j in range(len(rows)) if clusters[j] == c and j != index]
            for c in range(k)
        }
        own = apart.pop(clusters[index])
        if not own:
            widths.append(0.0)
            continue
        inside, outside = np.mean(own), min(np.mean(each) for each in apart.values())
        widths.append((outside - inside) / max(outside, inside))
    assert clustering.silhouette(rows, clusters) == pytest.approx(np.mean(widths), abs=1e-6)


def test_well_parted_clusters_are_found_with_their_number() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(3, size=90)
    points = rng.normal(size=(90, 5)) * 0.1 + np.eye(5)[truth] * 5
    assert adjusted_rand_index(clustering.k_means(points, 3, 1).tolist(), truth.tolist()) == 1
    widths = {k: clustering.silhouette(points, clustering.k_means(points, k, 1)) for k in range(2, 7)}
    assert max(widths, key=lambda k: widths[k]) == 3


def test_too_few_rows_to_cluster_are_refused(tmp_path: Path) -> None:
    rows = Corpus(pl.DataFrame({"text": ["same"] * 9}))
    with pytest.raises(DataError, match=r"split\.k: 1 distinct rows cannot be 2 clusters"):
        ByCluster(k=2).split(rows, LAB, Work(Resident(), tmp_path, tmp_path))
    with pytest.raises(DataError, match=r"split\.layer: 99 of a model that has"):
        ByCluster(k=2, layer=99).split(rows, LAB, Work(Resident(), tmp_path, tmp_path))


def test_a_classifiers_labels_are_the_subsets_and_the_unsure_are_left_out(tmp_path: Path) -> None:
    forget = load_corpus([Source(path="lab:toxicity/forget.jsonl")]).select(range(40))
    work = Work(Resident(), tmp_path, tmp_path)
    every = ByClassifier(id="lab:scorer").split(forget, LAB, work)
    assert {name for names in every for name in names} <= {"benign", "toxic"}
    assert all(len(names) == 1 for names in every)
    sure = ByClassifier(id="lab:scorer", confidence=0.999, batch_size=3).split(forget, LAB, work)
    assert any(not names for names in sure)
    assert all(names in ((), both) for names, both in zip(sure, every, strict=True))


def by_length(row: dict) -> str | list[str] | None:
    length = len(row["text"])
    return None if length == 1 else "long" if length > 5 else ["short", "any"]


def nonsense(row: dict) -> int:
    return len(row["text"])


def test_a_function_says_the_subsets(tmp_path: Path) -> None:
    rows = Corpus(pl.DataFrame({"text": ["a", "abc", "abcdefg"]}))
    work = Work(Resident(), tmp_path, tmp_path)
    assert ByFunction(function=f"{__name__}:by_length").split(rows, BASE, work) == [(), ("short", "any"), ("long",)]
    with pytest.raises(DataError, match="says 1 of row 1: return a name"):
        ByFunction(function=f"{__name__}:nonsense").split(rows, BASE, work)
    with pytest.raises(ValueError, match="cannot be imported"):
        ByFunction(function="nowhere:f")


def test_splits_by_a_model_are_kept_and_their_names_mean_nothing_elsewhere(world: dict, tmp_path: Path) -> None:
    world |= {"split": {"by": "cluster", "k": 2}, "controls": []}
    recipe = schema.Experiment.model_validate(world)
    for status in ("computed", "reused"):
        run = pipeline.run(recipe, out=tmp_path / "runs")
        stages = pl.read_json(run / "manifest.json")["stages"][0].to_list()
        assert [stage["status"] for stage in stages if stage["stage"] == "split"] == [status]
    world["retain"]["match"] = "subset"
    with pytest.raises(ValueError, match=r"retain\.match: ByCluster's subsets are of the forget set alone"):
        schema.Experiment.model_validate(world)


@pytest.mark.parametrize(
    "settings",
    [(ByClassifier, {}), (LanguageModel, {}), (Classifier, {"positive_label": "toxic"})],
    ids=lambda settings: settings[0].__name__,
)
def test_code_of_the_hub_needs_a_revision_whatever_the_model_is_for(settings: tuple[type, dict]) -> None:
    kind, options = settings
    kind(id="some/model", trust_remote_code=True, revision="abc", **options)
    with pytest.raises(ValueError, match="trust_remote_code: say which revision of the code you have read"):
        kind(id="some/model", trust_remote_code=True, **options)

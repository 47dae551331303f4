"""Mistakes of a first day: each is told in one line that names the thing and the fix."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from conftest import make_model, sentences, write_jsonl

import spunge
from spunge.errors import DataError, IncompatibleTaskVectors, ModelError, RecipeError
from spunge.mergers import Ties
from spunge.recipe import reading
from spunge.rows import readers
from spunge.run import standalone
from spunge.run.flow import foresee
from spunge.run.store import Store
from spunge.unlearners import AnyUnlearner

Write = Callable[[dict[str, Any]], Path]


@pytest.mark.parametrize(
    ("header", "columns"),
    [
        ("text;note, more;topic", ["text", "note, more", "topic"]),
        ('"text","a;b;c;d"', ["text", "a;b;c;d"]),
        ("text\ta,b\tc", ["text", "a,b", "c"]),
    ],
)
def test_a_spreadsheet_is_parted_by_the_mark_that_its_header_has_most_of(
    tmp_path: Path, header: str, columns: list[str]
) -> None:
    mark = max(";,\t", key=lambda mark: header.replace('"a;b;c;d"', "").count(mark))
    (tmp_path / "posts.csv").write_text(f"{header}\n{mark.join('x' * len(columns))}\n")
    assert spunge.rows(tmp_path / "posts.csv").rows.columns == columns


@pytest.mark.parametrize(("name", "before"), [("a.csv", "text\nfine\n"), ("a.jsonl", '{"text": "fine"}\n\n')])
def test_a_file_in_latin_1_is_told_with_its_line(tmp_path: Path, name: str, before: str) -> None:
    (tmp_path / name).write_bytes(before.encode() + '{"text": "café"}\n'.encode("latin-1"))
    with pytest.raises(DataError, match=r"line 3 is not UTF-8, perhaps Latin-1 .* `iconv -f LATIN1"):
        spunge.rows(tmp_path / name)


@pytest.mark.parametrize("where", ['topic == "chess"', "topic = chess"])
def test_text_in_an_expression_that_is_not_in_single_quotes(where: str) -> None:
    with pytest.raises(DataError, match="text stands in single quotes: 'chess'"):
        spunge.rows([{"text": "a", "topic": "chess"}], where=where)


def test_an_attribute_that_the_items_have_not_is_told_with_its_suite(
    world: dict[str, Any], write_recipe: Write, tmp_path: Path
) -> None:
    (suite,) = world["evaluate"]
    recipe = reading.read(write_recipe({**world, "evaluate": [{**suite, "attributes": ["topic"]}]}))
    with pytest.raises(DataError, match=r"suite 'hazards': .*no column 'topic', which `attributes` names; columns are"):
        foresee(recipe, Store(tmp_path / "store"), "cpu", lambda lines: None)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"retain": "benign.txt"}, r"retain: a section is wanted: write \{sources: \[\{path: benign.txt\}\]\}"),
        ({"model": "some/path"}, r"model: a section is wanted: write \{id: some/path\}"),
        ({"split": "topic"}, r"split: a section is wanted: write \{by: column, column: topic\}"),
        ({"evaluate": {"suite": "s"}}, r"evaluate: a list is wanted: put it in \[ \]"),
        ({"seeds": 0}, r"seeds: a list is wanted: write \[0\]"),
    ],
)
def test_a_section_that_is_not_one(world: dict[str, Any], write_recipe: Write, change: Any, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        reading.read(write_recipe({**world, **change}))


def test_data_where_a_recipe_or_a_suite_is_wanted(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "q.jsonl", [{"question": "?", "choices": ["a"], "answer": 0}])
    with pytest.raises(RecipeError, match=r"q.jsonl: a data file, not a suite: a suite is a YAML list"):
        reading.read_suite(str(file))
    with pytest.raises(RecipeError, match=r"q.jsonl: a data file, not a recipe: `spunge init .*q.jsonl --model M`"):
        reading.read(file)


def test_task_vectors_of_two_base_models(tiny_model: Path, tmp_path: Path) -> None:
    smaller = make_model(tmp_path / "smaller", hidden_size=8, intermediate_size=16)
    settings: dict[str, Any] = {"layer": 2, "steering_coefficient": 5, "alpha": 10, "max_steps": 1}
    vectors = [tmp_path / name for name in ("a", "b")]
    for model, out in zip((tiny_model, smaller), vectors, strict=True):
        spunge.unlearn(model, sentences(8, 1), sentences(8, 2), out=out, **settings)
    step = standalone.Step(str(tiny_model), tmp_path / "new", device="cpu")
    with pytest.raises(IncompatibleTaskVectors, match="it is of another base model"):
        standalone.merge(step, Ties(), [str(path) for path in vectors], standalone.parse_form("checkpoint", 1))
    with pytest.raises(IncompatibleTaskVectors, match="they are of different base models"):
        spunge.merge(vectors)
    with pytest.raises(RecipeError, match="give several task vectors"):
        spunge.merge(vectors[0])  # pyright: ignore[reportArgumentType]
    assert not (tmp_path / "new").exists()


def test_what_takes_a_handle_or_weights_says_so_of_a_loaded_model(tiny_model: Path) -> None:
    vector, model = spunge.TaskVector({"w": torch.ones(2)}), spunge.load(tiny_model).load()
    with pytest.raises(TypeError, match=r"model.state_dict\(\)"):
        vector.apply(model)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="the base model's directory, hub id or handle"), vector.on(model):  # pyright: ignore[reportArgumentType]
        pass


def test_rows_may_be_lists_and_a_corpus_is_made_by_rows() -> None:
    rows = [{"text": f"t{number}", "topic": "ab"[number % 2]} for number in range(4)]
    assert {name: len(part) for name, part in spunge.split(rows, column="topic").items()} == {"a": 2, "b": 2}
    with pytest.raises(TypeError, match=r"spunge.rows\(…\) reads one"):
        spunge.Corpus("file.jsonl")  # pyright: ignore[reportArgumentType]
    assert len(spunge.Corpus(pl.DataFrame({"text": ["a"]}))) == 1


def test_a_misspelt_file_or_method_is_told_which_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-first.yaml").touch()
    with pytest.raises(RecipeError, match=r"my-frist.yaml: no such recipe file; did you mean 'my-first.yaml'\?"):
        reading.read("my-frist.yaml")
    with pytest.raises(RecipeError, match=r"unknown method 'RMU'; did you mean 'rmu'\?"):
        reading.validate(AnyUnlearner, {"method": "RMU"}, "unlearn")
    with pytest.raises(RecipeError, match=r"unlearn.lr: unknown setting; did you mean 'learning_rate'\?"):
        reading.validate(AnyUnlearner, {"method": "npo", "lr": 1e-3}, "unlearn")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", "text,topic,topic\nx,y,z\n", "two columns are named 'topic': rename or remove one"),
        ("a.jsonl", '{"text": "x"}\n{"text": "x", "text": "y"}\n', r"a.jsonl:2: two values are named 'text': rename"),
        ("a.json", '[{"text": "x", "text": "y"}]', "two values are named 'text'"),
        (
            "a.csv",
            'text,topic\n"x\ny",z\nx,y,z\n',
            r"a.csv:4: 3 cells, of 2 columns: a cell that holds a ',' stands in do",
        ),
        ("a.csv", f"text\n{'x' * 200_000}\nx,y\n", r"a.csv:3: 2 cells, of 1 columns"),
        ("a.jsonl", '[{"text": "x"}]', "a JSON array, not an object a line: give it the ending .json"),
        ("a.jsonl", '{"text": "x"}\n{"text": NaN}\n', "row 2 has an empty 'text'"),
        ("a.csv", "Text , topic\nx,y\n", r"columns are 'Text ', ' topic'; name yours with --columns 'text=Text '"),
    ],
)
def test_a_file_that_is_not_quite_what_it_seems(tmp_path: Path, name: str, content: str, told: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=told):
        spunge.rows(tmp_path / name)


def test_large_files_are_held_to_the_same(tmp_path: Path) -> None:
    filling = '{"text": "word"}\n' * (readers.LARGE // 16)
    (tmp_path / "a.jsonl").write_text(filling + '{"text": "x", "text": "y"}\n')
    with pytest.raises(DataError, match="two values are named 'text'"):
        spunge.rows(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").write_text(filling + '{"text": NaN}\n')
    with pytest.raises(DataError, match="has an empty 'text'"):
        spunge.rows(tmp_path / "a.jsonl")


def test_bars_part_cells_too(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text|topic\nx, y|z\n")
    assert spunge.rows(tmp_path / "a.csv").rows.rows() == [("x, y", "z")]


@pytest.mark.parametrize(
    ("holds", "told"),
    [
        ("recipe.yaml", r"a run \(`spunge export` writes its model\)"),
        ("task_vector.safetensors", "a task vector .* adds it to its base model"),
        ("adapter_config.json", "an adapter"),
        ("notes.txt", "no config.json in it: a model is a directory of config.json"),
    ],
)
def test_directories_that_are_no_model(tmp_path: Path, holds: str, told: str) -> None:
    (tmp_path / holds).touch()
    with pytest.raises(ModelError, match=told):
        spunge.load(tmp_path).config()
    with pytest.raises(ModelError, match="a file, and a model is a directory"):
        spunge.load(tmp_path / holds).config()


def test_a_misspelt_suite_is_told_which_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "suite.yaml").touch()
    with pytest.raises(RecipeError, match=r"siute.yaml: no such suite file; did you mean 'suite.yaml'\?"):
        reading.read_suite("siute.yaml")
    with pytest.raises(RecipeError, match=r"neither a file nor a suite that ships with Spunge; did you mean 'wmdp'\?"):
        reading.read_suite("wdmp")
    assert reading.read_suite("wmdp")

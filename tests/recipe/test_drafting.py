"""A first recipe for a data file: it is read as it stands, and says what the file holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import sentences, write_jsonl

from spunge.cli import beginnings
from spunge.errors import DataError, RecipeError
from spunge.recipe import drafting, reading
from spunge.rows.sources import load_corpus
from spunge.run.flow import foresee
from spunge.run.store import Store
from spunge.splitters import ByCluster, ByColumn


def drafted(file: Path, **options: Any) -> Any:
    return reading.parse(drafting.draft("drafted", "lab:model", drafting.look(str(file), **options)))


def test_a_spreadsheet_of_semicolons_with_a_column_of_another_name(tmp_path: Path) -> None:
    rows = "".join(f'"text; {number}";{"men" if number % 2 else "on"};{number % 3}\n' for number in range(80))
    file = tmp_path / "posts.csv"
    file.write_text("body;group;level\n" + rows)
    recipe = drafted(file)
    assert recipe.split == ByColumn(column="group")
    kept, asked = (load_corpus(each) for each in (recipe.forget.sources, recipe.evaluate[0].sources))
    assert (len(kept), len(asked)) == (64, 16)
    assert not set(kept.texts) & set(asked.texts)
    assert recipe.evaluate[0].attributes == ("group",)
    assert isinstance(drafted(file, by="level").split, ByColumn)
    with pytest.raises(DataError, match="no column 'nope' to split by; columns are body, group, level"):
        drafted(file, by="nope")


def test_pairs_with_lists_and_rows_that_are_empty_or_belong_nowhere(tmp_path: Path) -> None:
    rows = [
        {"question": f"q{n}?", "answer": "" if n == 3 else f"a{n}", "tags": None if n == 5 else ["a", "b"][: 1 + n % 2]}
        for n in range(30)
    ]
    recipe = drafted(write_jsonl(tmp_path / "pairs.jsonl", rows))
    assert recipe.forget.sources[0].columns == {"prompt": "question", "response": "answer"}
    assert len(load_corpus(recipe.forget.sources)) == 29
    assert recipe.split == ByColumn(column="tags", null="drop")
    assert recipe.evaluate[0].method == "memorization"


@pytest.mark.parametrize("name", ["lines.txt", "a-weird 'name': {x}.txt"])
def test_a_file_of_lines_is_clustered(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_text("\n".join(sentences(50, 1)))
    recipe = drafted(file)
    assert isinstance(recipe.split, ByCluster)
    assert len(load_corpus(recipe.forget.sources)) == 40


def test_a_draft_can_be_planned_and_run(
    world: dict[str, Any], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"text": text, "topic": "xy"[number % 2]} for number, text in enumerate(sentences(48, 7))]
    write_jsonl(tmp_path / "what must go.jsonl", rows)
    write_jsonl(tmp_path / "benign.jsonl", [{"text": text} for text in sentences(48, 8)])
    (source,) = world["evaluate"][0]["sources"]
    beginnings.init("what must go.jsonl", str(tiny_model), "benign.jsonl", questions=source["path"])
    recipe = reading.read("what-must-go.yaml")
    assert [suite.suite for suite in recipe.evaluate] == ["questions", "must-go", "must-stay"]
    assert recipe.damage is not None
    planned = foresee(recipe, Store(tmp_path / "store"), "cpu", lambda lines: None)[1]
    assert sum(step["stage"] == "unlearn" for step in planned.steps) == 6
    with pytest.raises(RecipeError, match=r"what-must-go.yaml: there already; remove it"):
        beginnings.init("what must go.jsonl", str(tiny_model))


def test_what_no_recipe_can_be_made_of_is_told(tmp_path: Path) -> None:
    numbers = tmp_path / "numbers.json"
    numbers.write_text(json.dumps([{"n": 1}]))
    with pytest.raises(DataError, match=r"no column of texts; columns are n \(Int64\)"):
        drafted(numbers)
    questions = write_jsonl(tmp_path / "q.jsonl", [{"question": "?", "choices": ["a", "b"], "answer": 0}])
    with pytest.raises(DataError, match="name it as --questions"):
        drafted(questions)
    with pytest.raises(DataError, match="no column 'answer'"):
        drafting.questions(str(numbers), None)


def test_a_recipe_written_elsewhere_is_named_after_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # lest two recipes on one data file write into one run
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "posts.jsonl", [{"text": f"text {number}", "group": number % 2} for number in range(40)])
    beginnings.init("posts.jsonl", "lab:model", out=Path("second.yaml"))
    assert reading.read(tmp_path / "second.yaml").name == "second"
    beginnings.init("posts.jsonl", "lab:model", name="own", out=Path("third.yaml"))
    assert reading.read(tmp_path / "third.yaml").name == "own"

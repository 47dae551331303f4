"""What the files hold, how they are parted, and what is refused before anything is computed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spunge.auto.asking import Asking
from spunge.auto.inspection import Holding, check, inspect, splitter_of
from spunge.auto.parts import PARTS, divide
from spunge.auto.session import begin, claim, look
from spunge.auto.wish import Wish
from spunge.errors import ArtifactError, DataError, RecipeError
from spunge.recipe import drafting
from spunge.rows.sources import Source, load_corpus
from spunge.splitters import ByCluster, ByColumn

Rows = Sequence[dict[str, Any]]


def write(file: Path, rows: Rows) -> Source:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Source(path=str(file))


def texts(count: int, word: str = "w", **more: Any) -> list[dict[str, Any]]:
    return [{"text": f"{word}{number} says a thing of {number % 7}", **more} for number in range(count)]


def numbered(count: int, block: int) -> list[dict[str, Any]]:
    return [{**row, "n": number // block} for number, row in enumerate(texts(count))]


def held(tmp_path: Path, rows: Rows, name: str = "rows") -> Holding:
    return inspect([write(tmp_path / f"{name}.jsonl", rows)], "--forget")


QUESTIONS = [
    {
        "question": f"Which number is {number}?",
        "choices": [str(number), "one", "two", "ten"],
        "answer": 0,
        "group": "ab"[number % 2],
    }
    for number in range(40)
]


def test_files_say_what_they_hold(tmp_path: Path):
    assert held(tmp_path, texts(3)).kind == "texts"
    assert held(tmp_path, [{"prompt": "a", "response": "b"}]).kind == "answers"
    both = inspect([write(tmp_path / "t.jsonl", texts(3)), write(tmp_path / "q.jsonl", QUESTIONS)], "--forget")
    assert (both.kind, len(both.texts), both.questions and len(both.questions)) == ("questions", 3, 40)
    assert held(tmp_path, texts(3, toxicity_score=4.0)).toxic == "toxicity_score"


def test_questions_alone_are_unlearned_with_their_right_answers(tmp_path: Path):
    alone = held(tmp_path, QUESTIONS)
    assert alone.texts.rows.row(3, named=True) == {"group": "b", "prompt": "Which number is 3?", "response": "3"}
    assert splitter_of(alone.texts, None) == splitter_of(alone.texts, "group")


def test_a_file_of_no_known_kind_names_its_columns(tmp_path: Path):
    with pytest.raises(DataError, match=r"--forget .*no column 'text'.*columns are utterance: name yours"):
        held(tmp_path, [{"utterance": "x"}])


@pytest.mark.parametrize(
    ("by", "rows", "message"),
    [
        ("nation", texts(80), r"--by nation: no such column; those that could be used are none, or cluster"),
        ("group", texts(80, group="one"), r"all 80 rows have the value 'one'.*--by cluster"),
        ("n", numbered(4000, 1), r"4,000 values .*--by cluster"),
        ("n", numbered(80, 4), r"two of its 20 values have 8"),
    ],
)  # fmt: skip
def test_a_column_that_splits_nothing_is_refused(tmp_path: Path, by: str, rows: Rows, message: str):
    with pytest.raises(RecipeError, match=message):
        splitter_of(held(tmp_path, rows).texts, by)


def test_left_out_the_split_is_by_a_column_that_fits_else_by_cluster(tmp_path: Path):
    rows = [{**row, "id": number, "group": "abc"[number % 3]} for number, row in enumerate(texts(90))]
    forget = held(tmp_path, rows).texts
    assert splitter_of(forget, None) == splitter_of(forget, "group")
    assert isinstance(splitter_of(held(tmp_path, texts(90)).texts, None), ByCluster)


@pytest.mark.parametrize(
    ("columns", "chosen"),
    [
        ({"label": "ab", "group": "xyz"}, "group"),  # by what columns are often called, not by where they stand
        ({"hate_level": "ab", "shop": "xyz"}, "shop"),  # how bad a row is parts no subjects
        ({"n": [1, 2], "shop": "xyz"}, "shop"),
        ({"shop": [None, "x", "y"]}, "shop"),
        ({"hate_level": "ab"}, None),
    ],
)
def test_init_and_auto_split_by_the_same_column(tmp_path: Path, columns: dict[str, Any], chosen: str | None):
    rows = [
        {**row, **{name: values[number % len(values)] for name, values in columns.items()}}
        for number, row in enumerate(texts(90))
    ]
    splitter = splitter_of(held(tmp_path, rows).texts, None)
    assert (splitter.column if isinstance(splitter, ByColumn) else None) == chosen
    assert drafting.look(str(tmp_path / "rows.jsonl")).attribute == chosen


def test_twelve_rows_are_too_few(tmp_path: Path):
    with pytest.raises(DataError, match=r"--forget: 12 texts cannot be parted .* give 60 or more"):
        check(held(tmp_path, texts(12)), held(tmp_path, texts(90, "k"), "kept"))


def test_rows_in_both_sets_are_refused(tmp_path: Path):
    forget = held(tmp_path, texts(90))
    with pytest.raises(DataError, match="share 5 rows, which cannot both go and stay"):
        check(forget, held(tmp_path, [*texts(90, "k"), *texts(5)], "kept"))


def test_parts_do_not_overlap_and_equal_rows_lie_together(tmp_path: Path):
    forget = held(tmp_path, [*texts(200), *texts(50)])
    parts = divide(forget, held(tmp_path, texts(150, "k"), "kept"), tmp_path / "parts")
    asked = {part: set(load_corpus([Source(path=str(path))]).texts) for part, path in parts.asked.items()}
    trained = set(load_corpus([Source(path=str(parts.forget))]).texts)
    groups = [trained, *asked.values()]
    assert sum(map(len, groups)) == len(set().union(*groups)) == 200
    assert sum(parts.rows[f"forget-{part}"] for part in ("train", *PARTS)) == 250
    again = divide(forget, held(tmp_path, texts(150, "k"), "kept"), tmp_path / "again")
    for one in (tmp_path / "parts").iterdir():
        assert one.read_bytes() == (tmp_path / "again" / one.name).read_bytes()
    assert again.rows == parts.rows


def test_facts_are_all_unlearned_and_each_asked_in_one_part(tmp_path: Path):
    forget = inspect([write(tmp_path / "t.jsonl", texts(30)), write(tmp_path / "q.jsonl", QUESTIONS)], "--forget")
    parts = divide(forget, held(tmp_path, texts(150, "k"), "kept"), tmp_path / "parts")
    assert parts.rows["forget-train"] == 30
    assert sum(parts.rows[f"forget-{part}"] for part in PARTS) == 40


def test_where_both_sets_hold_questions_every_reading_asks_both(tmp_path: Path):
    forget, other = (write(tmp_path / f"{name}.jsonl", texts(90, name)) for name in ("f", "k"))
    questions = write(tmp_path / "q.jsonl", QUESTIONS)
    retain = inspect([other, questions], "--retain")
    both = divide(inspect([forget, questions], "--forget"), retain, tmp_path / "both")
    assert [suite.goal for suite in Asking(both, "questions").both("tune", 8)] == ["forget", "retain"]
    texts_alone = divide(inspect([forget], "--forget"), retain, tmp_path / "alone")
    assert [suite.goal for suite in Asking(texts_alone, "texts").both("tune", 8)] == ["forget"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"damage": 0.0}, "--damage 0: a budget above 0"),
        ({"minutes": -1.0}, "--minutes -1: give more than 0"),
        ({"trials": 1}, "--trials 1: two of each"),
        ({"methods": ("npo", "npo")}, "name each method once"),
        ({"methods": ("rnu",)}, "no such method; there are"),
    ],
)
def test_wishes_that_cannot_be_are_refused(tmp_path: Path, tiny_model: Path, changes: dict[str, Any], message: str):
    forget, retain = write(tmp_path / "f.jsonl", texts(90)), write(tmp_path / "r.jsonl", texts(90, "k"))
    with pytest.raises(RecipeError, match=message):
        look(Wish(str(tiny_model), (forget,), (retain,), **changes))


def test_a_method_from_outside_is_searched_where_its_code_may_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "my_method.py").write_text("from spunge.unlearners.npo import NPO\n\n\nclass Mine(NPO):\n    pass\n")
    monkeypatch.chdir(tmp_path)
    forget, retain = write(tmp_path / "f.jsonl", texts(80)), write(tmp_path / "r.jsonl", texts(80, "r"))
    wish = Wish("lab:model", (forget,), (retain,), methods=("my_method:Mine",))
    with pytest.raises(RecipeError, match="--allow-code"):
        look(wish)
    *_, spaces = look(wish, allow_code=True)
    assert {one.name for one in spaces["my_method:Mine"].dimensions} >= {"beta", "learning_rate"}


@pytest.mark.parametrize(
    ("prompt", "response"), [("question", "answer"), ("instruction", "output"), ("Prompt", "Completion")]
)
def test_prompts_and_answers_are_known_by_what_they_are_often_called(tmp_path: Path, prompt: str, response: str):
    holding = held(tmp_path, [{prompt: f"who is {number}", response: f"n{number}"} for number in range(30)])
    assert holding.kind == "answers"
    assert holding.questions is None
    assert holding.read_as == {"prompt": prompt, "response": response}
    assert holding.texts.rows.row(3, named=True) == {"prompt": "who is 3", "response": "n3"}


def test_columns_that_the_user_names_are_left_as_they_are_named(tmp_path: Path):
    file = write(tmp_path / "rows.jsonl", [{"frage": "who", "output": "me", "body": "none"}])
    holding = inspect([file.model_copy(update={"columns": {"instruction": "frage"}})], "--forget")
    assert holding.texts.rows.row(0, named=True) == {"prompt": "who", "response": "me", "body": "none"}


def test_a_question_lies_in_one_part_whatever_else_its_row_holds(tmp_path: Path):
    twice = [{**row, "id": number} for number, row in enumerate(QUESTIONS)]
    turned = [{**row, "id": 100, "choices": row["choices"][::-1], "answer": 3} for row in QUESTIONS]
    forget = held(tmp_path, [*twice, *turned], "q")
    parts = divide(forget, held(tmp_path, texts(80, "r"), "r"), tmp_path / "parts")
    asked = [
        {row["question"] for row in load_corpus([Source(path=str(parts.asked[part]))], require="rows").rows.to_dicts()}
        for part in PARTS
    ]
    assert sum(map(len, asked)) == len(QUESTIONS)


def test_questions_that_stand_in_both_sets_are_refused(tmp_path: Path):
    forget = inspect([write(tmp_path / "t.jsonl", texts(80)), write(tmp_path / "q.jsonl", QUESTIONS)], "--forget")
    asked = write(tmp_path / "p.jsonl", [{**row, "group": "other"} for row in QUESTIONS[:30]])
    retain = inspect([write(tmp_path / "r.jsonl", texts(80, "r")), asked], "--retain")
    with pytest.raises(DataError, match="share 30 rows"):
        check(forget, retain)


def test_what_is_refused_leaves_nothing_and_a_search_that_is_there_stays(tmp_path: Path):
    forget, retain = write(tmp_path / "f.jsonl", texts(80)), write(tmp_path / "r.jsonl", texts(80, "r"))
    wish, out = Wish("lab:model", (forget,), (retain,)), tmp_path / "out"

    def refused(store: Any) -> Any:
        raise DataError("nothing is known to begin with")

    for there in (False, True):
        if there:
            claim(wish, out)
        with pytest.raises(DataError, match="nothing is known"):
            begin(wish, out, refused)
        assert out.exists() == there


def test_a_search_does_not_go_on_with_rows_that_changed(tmp_path: Path):
    forget, retain = write(tmp_path / "f.jsonl", texts(80)), write(tmp_path / "r.jsonl", texts(80, "r"))
    wish, out = Wish("lab:model", (forget,), (retain,)), tmp_path / "out"
    claim(wish, out)
    claim(replace(wish, trials=4), out)
    with pytest.raises(ArtifactError, match="a search with another --damage"):
        claim(replace(wish, damage=0.1), out)
    write(tmp_path / "r.jsonl", texts(81, "r"))
    with pytest.raises(ArtifactError, match=r"began before .*r\.jsonl changed.*give another --out"):
        claim(wish, out)

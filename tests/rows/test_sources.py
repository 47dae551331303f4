"""Reading data: every format, columns, and what is wrong with them."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from steering_models import make_tokenizer

from spunge.errors import DataError
from spunge.rows.sources import Corpus, Source, concatenate, item_id, load_corpus, take_turns
from spunge.training.rows import encode

ROWS = [{"text": "a1 a2", "group": "007"}, {"text": "b1", "group": "NA"}]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet", "csv"])
def test_formats_agree(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"rows.{suffix}"
    frame = pl.DataFrame(ROWS)
    if suffix == "jsonl":
        frame.write_ndjson(file)
    elif suffix == "json":
        file.write_text(json.dumps(ROWS))
    elif suffix == "parquet":
        frame.write_parquet(file)
    else:
        frame.write_csv(file)
    corpus = load_corpus([Source(path=str(file))])
    assert corpus.rows.to_dicts() == ROWS
    assert corpus.fingerprint == Corpus(frame).fingerprint


def test_text_files_are_paragraphs(tmp_path: Path) -> None:
    file = tmp_path / "rows.txt"
    file.write_text("one\ntwo\n\n\n three \n \nfour")
    assert load_corpus([Source(path=str(file))]).texts == ["one\ntwo", "three", "four"]


def test_columns_are_renamed_set_and_cut(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    pl.DataFrame({"question": ["q"], "answer": ["a"]}).write_ndjson(file)
    source = Source(
        path=str(file), columns={"prompt": "question", "response": "answer"}, set={"domain": "bio"}, max_length=7
    )
    corpus = load_corpus([source])
    assert corpus.texts == ["q a"]
    assert corpus.max_lengths == [7]
    assert corpus.rows["domain"].to_list() == ["bio"]


def test_fingerprint_sees_content_and_ignores_attributes() -> None:
    frame = pl.DataFrame(ROWS)
    assert Corpus(frame).fingerprint == Corpus(frame.drop("group")).fingerprint
    assert Corpus(frame).fingerprint != Corpus(frame.reverse()).fingerprint
    assert Corpus(frame).full_fingerprint != Corpus(frame.drop("group")).full_fingerprint


@pytest.mark.parametrize("begun", ["<s>", "[gMASK]<sop>", "<｜begin▁of▁sentence｜>", "<|im_start|>"])
@pytest.mark.parametrize("column", ["text", "prompt"])
def test_rows_that_write_out_their_beginning_are_not_taken_for_those_of_before(begun: str, column: str) -> None:
    def fingerprints(cell: str) -> tuple[str, str]:
        rows = pl.DataFrame({"n": [1, 2], column: ["plain", cell]})
        return Corpus(rows).full_fingerprint, hashlib.sha256(rows.write_ndjson().encode()).hexdigest()

    for cell in (f"{begun}a", f" {begun}"):
        today, before = fingerprints(cell)
        assert today != before
    for cell in ("a < b", "a", f"a{begun}", "[1, 2]", "<p class='a'>", ""):
        today, before = fingerprints(cell)
        assert today == before


def test_topics_come_back_in_order() -> None:
    corpora = {"b": Corpus(pl.DataFrame(ROWS)), "a": Corpus(pl.DataFrame(ROWS[:1]))}
    union = concatenate(rows.with_subset(name) for name, rows in corpora.items())
    assert {name: rows.texts for name, rows in union.topics().items()} == {"b": ["a1 a2", "b1"], "a": ["a1 a2"]}
    assert list(union.topics()) == ["b", "a"]
    assert list(Corpus(pl.DataFrame(ROWS)).topics()) == ["forget"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "x"}\n{"text": \n', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", "[1]\n", r"a\.jsonl:1: a line must be a JSON object"),
        ("a.jsonl", '{"txt": "x"}\n', "no column 'text'.*columns are txt"),
        ("a.jsonl", '{"text": "x"}\n{"text": " "}\n', "row 2 has an empty 'text'"),
        ("a.jsonl", '{"text": 3}\n', "holds Int64, not text"),
        ("a.jsonl", "", "no rows"),
        ("a.json", '{"rows": [{"text": "x"}]}', "must be a JSON array of objects, or one object a line"),
        ("a.json", "[" * 10_000, "nested too deeply|cannot be read"),
        ("a.parquet", "no parquet", "cannot be read as parquet"),
        (
            "a.jsonl",
            b"\xff\xfe",
            "cannot be read as jsonl: it is UTF-16: convert it",
        ),
        ("a.jsonl", '{"text": "\\ud800"}\n', "cannot be read|not JSON"),
        ("a.jsonl", '{"text": "x", "spunge:subset": 1}\n', "has a column 'spunge:subset' already"),
        ("a.xlsx", "", "unknown kind of file"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message):
        load_corpus([Source(path=str(file))])


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('\ufeff{"text": "x"}\n', encoding="utf-8")
    assert load_corpus([Source(path=str(file))]).texts == ["x"]


def test_a_column_cannot_be_renamed_onto_another(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "x", "question": "y"}\n')
    with pytest.raises(DataError, match="has a column 'text' already"):
        load_corpus([Source(path=str(file), columns={"text": "question"})])


def test_missing_files_and_columns_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        load_corpus([Source(path=str(tmp_path / "none.jsonl"))])
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "x"}\n')
    with pytest.raises(DataError, match="no column 'question'; columns are text"):
        load_corpus([Source(path=str(file), columns={"text": "question"})])
    with pytest.raises(DataError, match="where: cannot evaluate"):
        load_corpus([Source(path=str(file))]).where("nothing > 3")


def test_item_id_is_of_content() -> None:
    assert item_id("q", ["a", "b"]) == item_id("q", ["a", "b"])
    assert item_id("q", ["a", "b"]) != item_id("q", ["b", "a"])


def test_fields_blocks_computed_columns_and_a_sources_own_filter(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": {"text": f"t{n}", "toxicity": n / 4 if n else None}, "level": n} for n in range(5)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = Source(
        path=str(file), columns={"text": "prompt.text", "how": "prompt.toxicity"}, blocks={"author": 2},
        compute={"toxic": "how >= 0.5", "one": "'for all'"}, where="level > 0",
    )  # fmt: skip
    assert load_corpus([source]).rows["one"].to_list() == ["for all"] * 4
    assert load_corpus([source]).rows.select("text", "how", "author", "toxic").to_dicts() == [
        {"text": f"t{n}", "how": n / 4, "author": n // 2, "toxic": n >= 2} for n in range(1, 5)
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"columns": {"text": "prompt.txt"}}, "column 'prompt' has no field 'txt'"),
        ({"where": "level > 9"}, "no row for which 'level > 9' is true"),
        ({"where": "lvl > 9"}, r"where: cannot evaluate 'lvl > 9'"),
        ({"compute": {"x": "lvl + 1"}}, r"compute\.x: cannot evaluate"),
        ({"compute": {"x": "UNNEST(levels)"}}, r"compute\.x: UNNEST\(\) is no function that may be used"),
    ],
)
def test_mistakes_in_a_sources_expressions_are_named(tmp_path: Path, settings: dict, message: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"prompt": {"text": "t"}, "level": 1, "levels": [1, 2]}) + "\n")
    with pytest.raises(DataError, match=message):
        load_corpus([Source(path=str(file), **settings)])


def test_text_in_double_quotes_is_hinted_at() -> None:
    with pytest.raises(DataError, match=r"where: cannot evaluate .*; text stands in single quotes: 'chess'"):
        Corpus(pl.DataFrame(ROWS)).where('text == "chess"')


def test_texts_and_questions_go_together(tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text('{"text": "w1 w2 w3"}\n')
    (tmp_path / "qa.jsonl").write_text('{"prompt": "w1 w2", "response": "w3"}\n')
    corpus = load_corpus([Source(path=str(tmp_path / name)) for name in ("text.jsonl", "qa.jsonl")])
    assert corpus.texts == ["w1 w2 w3", "w1 w2 w3"]
    whole, pair = encode(corpus, make_tokenizer(), max_length=9)
    assert whole.start == 0
    assert pair.start > 0


def test_columns_that_cannot_be_one_are_a_clear_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "tags": ["x"]}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "b", "tags": {"y": 1}}\n')
    with pytest.raises(DataError, match=r"the sources do not go together: .*rename or drop that column"):
        load_corpus([Source(path=str(tmp_path))])


@given(st.lists(st.integers(1, 7), min_size=1, max_size=4))
def test_corpora_take_turns_row_by_row_and_shorter_ones_begin_again(sizes: list[int]) -> None:
    rows = [[f"{name}{row}" for row in range(size)] for name, size in enumerate(sizes)]
    corpora = [Corpus(pl.DataFrame({"text": texts})) for texts in rows]
    endless = [itertools.cycle(texts) for texts in rows]
    assert take_turns(corpora).texts == [next(texts) for _ in range(max(sizes)) for texts in endless]


def test_without_leaves_what_says_something_else_whatever_its_attributes() -> None:
    rows = Corpus(pl.DataFrame({"text": ["a", "b", "a"], "group": ["x", "x", "y"]}))
    others = Corpus(pl.DataFrame({"text": ["a"], "group": ["z"], "more": [1]}))
    assert rows.without(others).texts == ["b"]

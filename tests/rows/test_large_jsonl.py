"""Large files of JSON Lines come to the same rows by the fast reader as line by line, and to the same complaints."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spunge.errors import DataError
from spunge.rows import readers
from spunge.rows.sources import _digest

_cells = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.integers(-9, 9), st.floats(), st.text(max_size=5),
    st.sampled_from(["2020-01-01", "2020-01-01 10:00:00", "1", "1.5", "true", "null", "NaN", "\ud800", "\0", "é", ""]),
    st.lists(st.text(max_size=2), max_size=2), st.dictionaries(st.sampled_from("xy"), st.integers(0, 3), max_size=2),
)  # fmt: skip
_of_a_kind = st.sampled_from([st.text(max_size=8), st.integers(-99, 99), st.booleans(), st.floats(-9, 9), _cells])


@st.composite
def tables(draw: st.DrawFn) -> list[str]:
    columns = draw(st.lists(st.tuples(st.sampled_from(["a", "b", "text", "ü"]), _of_a_kind), min_size=1, max_size=4))
    lines = []
    for _ in range(draw(st.integers(1, 6))):
        row = {name: draw(cells) for name, cells in columns if draw(st.integers(0, 5))}
        lines.append(json.dumps(row, ensure_ascii=draw(st.booleans())))
        if not draw(st.integers(0, 9)):
            lines.append(draw(st.sampled_from(["", "  ", "[1]", "{", '{"a": 1, "a": 2}', '{"a": 01}', "{} {}", "3"])))
    return lines


@settings(deadline=None)
@given(tables())
@example(['{"a": 1}', '{"a": 2.5}'])
@example(['{"a": 1, "b": "x"}', '{"b": "y", "c": true}'])
@example(['{"a": 1, "a": 2}', '{"a": 3}'])
@example(['\ufeff{"a": "x"}'])
@example(["{}", '{"a": 1}'])
@example(["{}", "{} {}"])
@example(['{"a": "x"}\r{"a": "y"}'])
def test_the_fast_reader_gives_the_same_rows_or_none(lines: list[str]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "rows.jsonl"
        file.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
        fast = readers._read_plain_jsonl(file)
        if fast is not None:
            slow = readers._read_any_jsonl(file)
            assert fast.schema == slow.schema
            assert fast.equals(slow, null_equal=True)


def test_a_plain_file_takes_the_fast_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"text": f"row {number}", "group": "ab"[number % 2], "score": number / 7, "id": number} for number in range(500)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    monkeypatch.setattr(readers, "LARGE", 0)
    monkeypatch.setattr(readers, "_read_any_jsonl", None)
    assert readers.read_local(file).equals(pl.DataFrame(rows))


@pytest.mark.parametrize(
    ("last", "complaint"),
    [(b'{"text": ', ":3: not JSON"), (b"[1]", ":3: a line must be a JSON object"), (b"\xff", "UTF-8")],
)
def test_what_is_wrong_is_told_by_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: bytes, complaint: str
) -> None:
    monkeypatch.setattr(readers, "LARGE", 0)
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"text": "a"}\n{"text": "b"}\n' + last)
    with pytest.raises(DataError, match=complaint):
        readers.read_local(file)


def test_a_digest_does_not_depend_on_how_many_rows_are_written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = pl.DataFrame({"text": [f"row {number}" for number in range(50)], "n": list(range(50))})
    whole = _digest(rows)
    monkeypatch.setattr(sys.modules["spunge.rows.sources"], "_DIGESTED", 7)
    assert _digest(rows) == whole

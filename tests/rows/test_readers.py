"""Files of rows as people have them: compressed, in other encodings, with columns of every kind."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path

import datasets
import polars as pl
import pyarrow
import pytest

from spunge import memory
from spunge.errors import DataError
from spunge.rows import readers
from spunge.rows.items import load_items
from spunge.rows.readers import read_local
from spunge.rows.sources import Corpus, Source, load_corpus

ROWS = [{"text": "a1, a2", "group": "007"}, {"text": "b\u00e9 1", "group": "NA"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def read(path: Path, **settings: object) -> pl.DataFrame:
    return load_corpus([Source.model_validate({"path": str(path), **settings})]).rows


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_json_lines_may_be_named_json(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.json", LINES)).to_dicts() == ROWS
    assert read(write(tmp_path / "b.json", LINES.splitlines()[0])).to_dicts() == ROWS[:1]
    with pytest.raises(DataError, match=r"c\.json:2: not JSON"):
        read(write(tmp_path / "c.json", LINES.replace("}\n", "\n").replace("\n", "}\n", 1)))


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst"])
def test_compressed_files_are_what_is_in_them(tmp_path: Path, suffix: str) -> None:
    def zstd(content: bytes) -> bytes:
        sink = pyarrow.BufferOutputStream()
        with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(content)
        return sink.getvalue().to_pybytes()

    compress = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd}[suffix]
    folder = tmp_path / "folder"
    folder.mkdir()
    assert read(write(folder / f"a.jsonl.{suffix}", compress(LINES.encode()))).to_dicts() == ROWS
    assert read(folder).to_dicts() == ROWS
    with pytest.raises(DataError, match=rf"b\.jsonl\.{suffix}: cannot be read as jsonl"):
        read(write(tmp_path / f"b.jsonl.{suffix}", compress(LINES.encode())[:-12]))


def test_what_datasets_saved_is_read_by_its_split(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list(ROWS)
    rows.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": rows, "test": rows.select([1])}).save_to_disk(str(tmp_path / "several"))
    assert read(tmp_path / "one").to_dicts() == ROWS
    assert read(tmp_path / "several").to_dicts() == ROWS
    assert read(tmp_path / "several", split="test").to_dicts() == ROWS[1:]
    with pytest.raises(DataError, match=r"no split 'dev'; it has train, test"):
        read(tmp_path / "several", split="dev")
    assert read(next((tmp_path / "one").glob("*.arrow"))).to_dicts() == ROWS  # a stream
    pl.DataFrame(ROWS).write_ipc(tmp_path / "file.arrow")
    assert read(tmp_path / "file.arrow").to_dicts() == ROWS


def test_a_byte_order_mark_and_the_line_ends_of_windows_are_no_content(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.txt", "\ufeffone\r\ntwo\r\n\r\nthree\r\n"))["text"].to_list() == [
        "one\ntwo",
        "three",
    ]
    assert read(write(tmp_path / "b.csv", "\ufefftext,group\r\nx,1\r\n")).to_dicts() == [{"text": "x", "group": "1"}]
    windows = LINES.replace("\n", "\r\n")
    assert read(write(tmp_path / "c.jsonl", "\ufeff" + windows)).to_dicts() == ROWS
    assert read(write(tmp_path / "d.json", "\ufeff" + windows)).to_dicts() == ROWS


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        ("utf-16", "it is UTF-16: convert it, as with `iconv -f UTF-16 -t UTF-8 {name} > utf8-{name}`"),
        ("latin-1", "line 2 is not UTF-8, perhaps Latin-1 or Windows-1252: convert it, as with `iconv -f LATIN1 "),
    ],
)
def test_another_encoding_is_named_with_the_remedy(tmp_path: Path, name: str, encoding: str, message: str) -> None:
    with pytest.raises(DataError) as raised:
        read(write(tmp_path / name, 'text\n{"text": "caf\u00e9"}\n'.encode(encoding)))
    assert message.format(name=name) in str(raised.value)


def test_a_column_that_changes_its_type_late_becomes_text(tmp_path: Path) -> None:
    rows = [{"text": "x", "label": 7}] * 100_000 + [{"text": "x", "label": "none"}]
    file = write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    labels = read(file)["label"]
    assert (labels[0], labels[-1], labels.null_count()) == ("7", "none", 0)
    mixed = [{"text": "x", "groups": "a"}, {"text": "y", "groups": ["a", "b"]}]
    with pytest.raises(DataError, match=r"column 'groups' holds text or a number in row 1 and a list in row 2"):
        read(write(tmp_path / "b.json", json.dumps(mixed)))


def test_images_and_nested_columns_are_attributes_like_others(tmp_path: Path) -> None:
    rows = pl.DataFrame({
        "text": ["a", "b"],
        "image": [{"bytes": b"\xff\x00", "path": None}, {"bytes": b"\x01", "path": "p"}],
        "hash": [b"\x00", None],
        "tags": [["x", "y"], []],
        "meta": [{"id": 1, "parts": [{"n": 1.5}]}, {"id": 2, "parts": []}],
    })  # fmt: skip
    rows.write_parquet(tmp_path / "a.parquet")
    corpus = Corpus(read(tmp_path / "a.parquet"))
    other = Corpus(corpus.rows.with_columns(pl.Series("hash", [b"\x02", None])))
    assert corpus.fingerprint == Corpus(rows.select("text")).fingerprint
    assert (
        len({corpus.full_fingerprint, other.full_fingerprint, Corpus(corpus.rows.drop("hash")).full_fingerprint}) == 3
    )
    items = load_items([Source(path=str(tmp_path / "a.parquet"))], attributes=["tags", "meta"])
    assert [json.loads(item.attributes)["tags"] for item in items] == [["x", "y"], []]
    assert len({item.id for item in items}) == 2


def test_a_fingerprint_is_that_of_the_rows_as_json_lines(tmp_path: Path) -> None:
    import hashlib

    rows = pl.DataFrame(ROWS).with_columns(n=pl.Series([1.5, None]), tags=pl.Series([["x"], []]))
    expected = hashlib.sha256(rows.select(sorted(rows.columns)).write_ndjson().encode()).hexdigest()
    assert Corpus(rows).full_fingerprint == expected


@pytest.mark.parametrize("mark", [";", "\t"])
def test_cells_may_be_parted_by_semicolons_or_tabs(tmp_path: Path, mark: str) -> None:
    content = f"text{mark}group\nb, c{mark}1,5\n"
    assert read(write(tmp_path / "a.csv", content)).to_dicts() == [{"text": "b, c", "group": "1,5"}]
    assert read(write(tmp_path / "a.tsv", content)).to_dicts() == [{"text": "b, c", "group": "1,5"}]


def test_text_files_may_hold_a_text_a_line(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", "one\ntwo\n\nthree\n")
    assert read(file, lines=True)["text"].to_list() == ["one", "two", "three"]
    with pytest.raises(DataError, match=r"`lines` is for text files"):
        read(write(tmp_path / "a.jsonl", LINES), lines=True)


def test_a_row_of_a_million_characters_is_a_row(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", json.dumps({"text": "word " * 200_000}) + "\n")
    (text,) = read(file)["text"]
    assert len(text) == 1_000_000


def test_a_line_that_is_a_book_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "LONGEST", 40)
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "short"}\n' + json.dumps({"text": "long " * 20}) + "\n")
    with pytest.raises(DataError, match=r"rows.jsonl:2: a line of more than .* letters"):
        read_local(file)


@pytest.mark.parametrize("ending", [".parquet", ".jsonl.gz", ".jsonl.bz2", ".jsonl.xz", ".jsonl.zst"])
def test_a_small_file_that_unpacks_to_more_than_there_is_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    content = b'{"text": "' + b"x" * 3_000_000 + b'"}\n'
    file = tmp_path / f"rows{ending}"
    if ending == ".parquet":
        pl.DataFrame({"text": ["x" * 3_000_000]}).write_parquet(file)
    elif ending == ".jsonl.zst":
        with pyarrow.CompressedOutputStream(str(file), "zstd") as stream:
            stream.write(content)
    else:
        file.write_bytes({".gz": gzip, ".bz2": bz2, ".xz": lzma}[file.suffix].compress(content))
    assert len(read_local(file)) == 1
    monkeypatch.setattr(memory, "available", lambda: 1_000_000)
    with pytest.raises(DataError, match=r"unpack to .* MiB or more, and 977 KiB of memory are free"):
        read_local(file)

"""Rows as frames: one reader a kind of file, chosen by the name's ending, compressed or not; and one for the hub."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import polars as pl

from spunge import memory
from spunge.errors import DataError, first_line, hub_refusal
from spunge.files import format_bytes, refuse_special

LONGEST = 200 * 10**6
"""Letters that a line of JSON may have. Read, parsed and made a cell it takes some five times as many bytes."""


LARGE = 1 << 20
"""Bytes from which a file of JSON Lines is worth another reader."""
_JSON_BLOCK = 1 << 24
"""Bytes of such a file that are parsed at once."""
_UNREADABLE = (pl.exceptions.PolarsError, UnicodeError, json.JSONDecodeError, csv.Error, lzma.LZMAError)
_EXACT = 2**53
"""From here on float64 does not hold every whole number."""


@dataclass(frozen=True)
class Reading:
    """How files are to be read, where their names do not say."""

    split: str = "train"
    """The split of a directory that holds several."""
    lines: bool = False
    """Whether a text file holds one text a line, rather than one between blank lines."""


def read_local(path: Path, reading: Reading | None = None) -> pl.DataFrame:
    """Reads a file, all data files of a directory one after the other, or what `save_to_disk` of datasets wrote.

    Raises:
        DataError: It is of an unknown kind, is not what its name says, or unpacks to more than there is memory.
    """
    reading = reading or Reading()
    if path.is_dir():
        if all((path / name).exists() for name in _SAVED) or (path / _SAVED_SPLITS).exists():
            return _read_saved(path, reading.split)
        files = sorted(file for file in path.iterdir() if file.name.endswith(SUFFIXES))
        if not files:
            raise DataError(f"{path}: no data files in this directory (looked for {', '.join(_KINDS)})")
        return stack([read_local(file, reading) for file in files])
    refuse_special(path)
    kind = _kind(path)
    reader = _READERS.get(kind)
    if reader is None:
        raise DataError(f"{path}: unknown kind of file {kind!r}; use one of {', '.join(_KINDS)}")
    if reading.lines and reader is not _read_text:
        raise DataError(f"{path}: `lines` is for text files (.txt), whose texts are else parted by blank lines")
    try:
        _refuse_what_does_not_fit(path)
        return reader(path, reading)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: cannot be read as {kind[1:]}: {_encoding(path)}") from error
    except (*_UNREADABLE, OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read as {kind[1:]}: {first_line(error)}") from error


def read_hub(path: str, name: str | None, split: str, revision: str | None) -> pl.DataFrame:
    """Reads a split of a data set on the hub.

    Raises:
        DataError: The hub does not have it, does not hand it out, or cannot be reached.
    """
    import datasets  # four seconds to import: only for the hub

    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(path, name, split=split, revision=revision)
    except Exception as error:  # the hub client raises many kinds, none of which a user can tell apart
        reason = hub_refusal(error, f"datasets/{path}")
        raise DataError(f"{path}: neither a local file nor to be had from the hub: {reason}") from error
    return pl.from_arrow(loaded.data.table)  # pyright: ignore[reportReturnType, reportAttributeAccessIssue]


def stack(frames: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Puts frames below one another; a column that one of them lacks is null there.

    Raises:
        DataError: A column holds what cannot stand in one column, such as text in one and a list in another.
    """
    try:
        return pl.concat(frames, how="diagonal_relaxed")
    except pl.exceptions.PolarsError as error:
        raise DataError(
            f"the sources do not go together: {first_line(error)}; rename or drop that column with `columns`"
        ) from error


def paragraphs(text: str) -> list[str]:
    """Returns the texts between blank lines, as the retain sets of RMU come."""
    return [block.strip() for block in re.split(r"\n\s*\n", text) if block.strip()]


def read_text(path: Path) -> str:
    """Returns a text file's contents, decompressed, without a byte-order mark, its lines ended by line feeds."""
    with io.TextIOWrapper(_open(path), encoding="utf-8-sig") as stream:
        return stream.read()


def _kind(path: Path) -> str:
    """Returns the ending that says what is in a file, that of a compression apart."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return suffixes[-2] if len(suffixes) > 1 and suffixes[-1] in _COMPRESSIONS else path.suffix.lower()


def _refuse_what_does_not_fit(path: Path) -> None:
    """Refuses a file that unpacks to more than the memory that is free, without unpacking it into memory.

    A small file may: a page of Parquet or a block of gzip that says one thing many times takes a few bytes.

    Raises:
        DataError: It does.
    """
    free = memory.available()
    size = path.stat().st_size
    if path.suffix.lower() in _COMPRESSIONS:
        with _open(path) as stream:
            while size <= free and (piece := stream.read(1 << 20)):
                size += len(piece)
    elif path.suffix.lower() == ".parquet":
        from pyarrow import ArrowException, parquet

        try:
            known = parquet.read_metadata(path)
        except (ArrowException, OSError):  # what is no Parquet is refused by who reads it
            return
        # A value takes at least a pointer in memory, however often it is repeated in the file.
        size = known.num_rows * known.num_columns * 8
        size += sum(known.row_group(number).total_byte_size for number in range(known.num_row_groups))
    if size > free:
        raise DataError(
            f"{path}: its {format_bytes(path.stat().st_size)} unpack to {format_bytes(size)} or more, and "
            f"{format_bytes(free)} of memory are free: cut it into parts, or keep fewer rows"
        )


def _open(path: Path) -> BinaryIO:
    opener = _COMPRESSIONS.get(path.suffix.lower())
    return path.open("rb") if opener is None else opener(path)


def _open_zstd(path: Path) -> BinaryIO:
    import pyarrow  # Python has zstd from 3.14 on

    stream = pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd")
    return io.BufferedReader(cast("io.RawIOBase", stream))


def _encoding(path: Path) -> str:
    """Says in which line a file is not UTF-8, what encoding it seems to be in, and how to mend it."""
    with _open(path) as stream:
        content, line = stream.read(1 << 16), 1
        stream.seek(0)
        for line, text in enumerate(stream, 1):  # noqa: B007
            try:
                text.decode()
            except UnicodeDecodeError:
                break
    # A guess: all bytes are valid there.
    seems, name = f"line {line} is not UTF-8, perhaps Latin-1 or Windows-1252", "LATIN1"
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in content[:1000]:
        seems, name = "it is UTF-16", "UTF-16"
    return f"{seems}: convert it, as with `iconv -f {name} -t UTF-8 {path.name} > utf8-{path.name}`"


def _read_jsonl(path: Path, reading: Reading) -> pl.DataFrame:
    if path.suffix.lower() not in _COMPRESSIONS and path.stat().st_size >= LARGE:
        frame = _read_plain_jsonl(path)
        if frame is not None:
            return frame
    return _read_any_jsonl(path)


def _read_plain_jsonl(path: Path) -> pl.DataFrame | None:
    """Reads JSON Lines with pyarrow, several times as fast; None where that might come to something else.

    So it is for flat rows alone, of texts, truth values and numbers that float64 holds exactly, each column of one
    kind. What is wrong with a file is found by reading it again, line by line.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import json as arrow_json

    try:
        # A row longer than a block would be an error, and is then read the other way.
        options = arrow_json.ReadOptions(block_size=_JSON_BLOCK, use_threads=False)  # with, half as much again
        table = arrow_json.read_json(path, read_options=options)
        table.validate(full=True)  # pyarrow takes bytes that are no UTF-8
    except (pa.ArrowException, OSError):
        return None
    for field, column in zip(table.schema, table.columns, strict=True):
        if pa.types.is_integer(field.type) or pa.types.is_floating(field.type):
            extremes = pc.call_function("min_max", [column])  # no type checker sees `pc.min_max`, made at run time
            if not all(abs(extremes[side].as_py() or 0) < _EXACT for side in ("min", "max")):
                return None
        elif not (pa.types.is_string(field.type) or pa.types.is_boolean(field.type)):
            return None  # times, which are texts to us; what is null everywhere; lists and objects
    with path.open("rb") as lines:
        objects = sum(not line.isspace() for line in lines)
    if not table.num_rows or table.num_rows != objects:  # pyarrow takes several objects on a line
        return None
    return cast("pl.DataFrame", pl.from_arrow(table)).rechunk()


def _read_any_jsonl(path: Path) -> pl.DataFrame:
    rows = []
    with io.TextIOWrapper(_open(path), encoding="utf-8-sig") as lines:
        for number, line in enumerate(iter(partial(lines.readline, LONGEST), ""), 1):
            if len(line) == LONGEST:
                raise DataError(
                    f"{path}:{number}: a line of more than {LONGEST // 10**6} million letters: JSON Lines have one "
                    "object a line, and a text that long is a file of its own (.txt)"
                )
            if not line.strip():
                continue
            try:
                row = _parse(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise DataError(f"{path}:{number}: not JSON: {first_line(error)}") from error
            except _Twice as error:
                raise DataError(f"{path}:{number}: {error}") from error
            if isinstance(row, list) and any(isinstance(one, dict) for one in row):
                raise DataError(f"{path}: a JSON array, not an object a line: give it the ending .json")
            if not isinstance(row, dict):
                raise DataError(f"{path}:{number}: a line must be a JSON object, this is a {type(row).__name__}")
            rows.append(row)
    return _frame(rows, path)


def _read_json(path: Path, reading: Reading) -> pl.DataFrame:
    text = read_text(path)
    try:
        rows = _parse(text)
    except _Twice as error:
        raise DataError(f"{path}: {error}") from error
    except json.JSONDecodeError:
        # Many public files are JSON Lines by another name; where the first line is whole, so are they meant.
        if _is_object(text.lstrip().partition("\n")[0]):
            return _read_any_jsonl(path)
        raise
    except RecursionError as error:
        raise DataError(f"{path}: nested too deeply") from error
    if isinstance(rows, dict) and "\n" not in text.strip() and not any(isinstance(v, list) for v in rows.values()):
        return _frame([rows], path)  # JSON Lines of one row
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: must be a JSON array of objects, or one object a line")
    return _frame(rows, path)


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (json.JSONDecodeError, RecursionError):
        return False


class _Twice(ValueError):
    """An object has two values of one name."""


def _parse(text: str) -> Any:
    """Parses JSON. `NaN`, which Python writes where pandas has no value, is none; of two values none is taken.

    Raises:
        _Twice: An object names a thing twice.
    """
    return json.loads(
        text, object_pairs_hook=_object, parse_constant=lambda name: None if name == "NaN" else float(name)
    )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise _Twice(f"two values are named {_twice([name for name, _ in pairs])!r}: rename or remove one")
    return made


def _twice(names: Sequence[str]) -> str | None:
    """Returns the first name that stands there a second time."""
    return next((name for number, name in enumerate(names) if name in names[:number]), None)


def _frame(rows: list[dict[str, Any]], path: Path) -> pl.DataFrame:
    """Returns JSON rows as a frame; numbers become text in a column that holds text too, wherever that begins."""
    if not rows:
        return pl.DataFrame()
    try:
        # The whole column is looked at, as a key may come, or change its type, in the last row only.
        return pl.DataFrame(rows, infer_schema_length=None, strict=False)
    except pl.exceptions.PolarsError as error:
        for name in dict.fromkeys(name for row in rows for name in row):
            kinds: dict[str, int] = {}
            for number, row in enumerate(rows, 1):
                if (cell := row.get(name)) is not None:
                    kinds.setdefault(_JSON_KINDS.get(type(cell), "text or a number"), number)
            if len(kinds) > 1:
                (first, one), (second, other), *_ = kinds.items()
                raise DataError(
                    f"{path}: column {name!r} holds {first} in row {one} and {second} in row {other}: write all alike"
                ) from error
        raise


def _read_text(path: Path, reading: Reading) -> pl.DataFrame:
    text = read_text(path)
    texts = [line.strip() for line in text.split("\n") if line.strip()] if reading.lines else paragraphs(text)
    return pl.DataFrame({"text": texts}, schema={"text": pl.String})


def _read_csv(path: Path, reading: Reading) -> pl.DataFrame:
    with _open(path) as stream:
        content = stream.read()
    content.decode("utf-8-sig")  # polars would only say that it is invalid
    header = re.sub(rb'"[^"]*"', b"", content.split(b"\n", 1)[0]).decode("utf-8-sig", "replace")
    # Where decimals have a comma, spreadsheets part cells by semicolons; a column's name may hold any of the four.
    separator = max((",", ";", "\t", "|"), key=header.count)
    if header.strip():
        names = next(_cells(content, separator))
        if twice := _twice(names):  # polars would give the second another name, and nobody would know
            raise DataError(f"{path}: two columns are named {twice!r}: rename or remove one")
    try:
        # Every column stays text: inference would turn the label 007 into 7 and NA into null.
        return pl.read_csv(content, infer_schema=False, separator=separator)
    except pl.exceptions.ComputeError as error:
        rows = _cells(content, separator)
        columns = len(next(rows))
        if longer := next(((rows.line_num, len(cells)) for cells in rows if len(cells) > columns), None):
            raise DataError(
                f"{path}:{longer[0]}: {longer[1]} cells, of {columns} columns: "
                f"a cell that holds a {separator!r} stands in double quotes"
            ) from error
        raise


def _cells(content: bytes, separator: str) -> Any:
    """Returns Python's own reader of CSV, which is slow, but knows the line it is in."""
    csv.field_size_limit(LONGEST)
    return csv.reader(io.TextIOWrapper(io.BytesIO(content), "utf-8-sig", newline=""), delimiter=separator)


def _read_parquet(path: Path, reading: Reading) -> pl.DataFrame:
    if path.suffix.lower() not in _COMPRESSIONS:
        return pl.read_parquet(path)
    with _open(path) as stream:
        return pl.read_parquet(stream.read())


def _read_arrow(path: Path, reading: Reading) -> pl.DataFrame:
    """Arrow comes as a file with an index, or as the stream that datasets writes."""
    with _open(path) as stream:
        content = stream.read()
    return pl.read_ipc(content) if content.startswith(b"ARROW1") else pl.read_ipc_stream(content)


def _read_saved(path: Path, split: str) -> pl.DataFrame:
    """Reads what `save_to_disk` of datasets wrote, one data set or a split of several."""
    import datasets  # four seconds to import

    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # datasets raises many kinds, none of which a user can tell apart
        raise DataError(f"{path}: cannot be read as a saved data set: {first_line(error)}") from error
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise DataError(f"{path}: no split {split!r}; it has {', '.join(map(str, loaded))}: set `split`")
        loaded = loaded[split]
    table = cast("datasets.Dataset", loaded).with_format("arrow")[:]  # rows that were selected or sorted, as they are
    return cast("pl.DataFrame", pl.from_arrow(table))


_SAVED = ("dataset_info.json", "state.json")
_SAVED_SPLITS = "dataset_dict.json"
_JSON_KINDS = {list: "a list", dict: "an object"}
_COMPRESSIONS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zstd,
}
_READERS: dict[str, Callable[[Path, Reading], pl.DataFrame]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
    ".feather": _read_arrow,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".txt": _read_text,
    ".text": _read_text,
}
_KINDS = tuple(_READERS)
SUFFIXES = (*_KINDS, *(kind + compression for kind in _KINDS for compression in _COMPRESSIONS))
"""The endings of data files, compressed ones too."""

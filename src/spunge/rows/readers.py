"""Files of rows as frames: one reader a kind of file, chosen by the name's ending."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from spunge.errors import DataError, first_line

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".txt", ".text")


def read_local(path: Path) -> pl.DataFrame:
    """Reads a file, or all data files of a directory one after the other.

    Raises:
        DataError: It is of an unknown kind, or is not what its name says.
    """
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
        if not files:
            raise DataError(f"{path}: no data files in this directory (looked for {', '.join(SUFFIXES)})")
        return stack([read_local(file) for file in files])
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: unknown kind of file {path.suffix!r}; use one of {', '.join(SUFFIXES)}")
    try:
        return reader(path)
    except (pl.exceptions.PolarsError, UnicodeError, json.JSONDecodeError, OSError) as error:
        raise DataError(f"{path}: cannot be read as {path.suffix[1:]}: {first_line(error)}") from error


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


def _read_jsonl(path: Path) -> pl.DataFrame:
    rows = []
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise DataError(f"{path}:{number}: not JSON: {first_line(error)}") from error
            if not isinstance(row, dict):
                raise DataError(f"{path}:{number}: a line must be a JSON object, this is a {type(row).__name__}")
            rows.append(row)
    return _frame(rows)


def _read_json(path: Path) -> pl.DataFrame:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except RecursionError as error:
        raise DataError(f"{path}: nested too deeply") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: must be a JSON array of objects (one object a line is JSONL: name it .jsonl)")
    return _frame(rows)


def _frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    # The whole column is looked at, as a key may come in the last row only.
    return pl.DataFrame(rows, infer_schema_length=None, strict=False) if rows else pl.DataFrame()


def _read_text(path: Path) -> pl.DataFrame:
    """Paragraphs between blank lines, as the retain sets of RMU come."""
    paragraphs = (block.strip() for block in re.split(r"\n\s*\n", path.read_text(encoding="utf-8")))
    return pl.DataFrame({"text": [block for block in paragraphs if block]}, schema={"text": pl.String})


def _read_csv(path: Path) -> pl.DataFrame:
    # Every column stays text: inference would turn the label 007 into 7 and NA into null.
    return pl.read_csv(path, infer_schema=False)


_READERS: dict[str, Callable[[Path], pl.DataFrame]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".parquet": pl.read_parquet,
    ".csv": _read_csv,
    ".txt": _read_text,
    ".text": _read_text,
}

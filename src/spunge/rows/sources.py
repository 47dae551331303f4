"""Forget, retain and evaluation sets: where rows come from, which columns they must have, what they hash to."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, cast

import polars as pl
from pydantic import Field

from spunge.errors import DataError, first_line
from spunge.files import files_below, is_local, locate
from spunge.rows import expressions
from spunge.rows.readers import SUFFIXES, Reading, read_hub, read_local, stack
from spunge.settings import Settings

RESERVED = "spunge:"
SUBSET = RESERVED + "subset"
MAX_LENGTH = RESERVED + "max_length"
CONTENT = ("text", "system", "prompt", "response", "alternative", MAX_LENGTH, SUBSET)
"""The columns an unlearner may read; everything else in a forget set is an attribute."""
_DIGESTED = 1 << 14
"""Rows that are written as JSON at once for the digest: all would be another two copies of the data."""
_BEGUN = r"^\s*(<[^<>\s]+>|\[\w+\])"
"""A row that may write out the token that begins a text (`<s>`, `<|begin_of_text|>`, `[gMASK]`)."""


def is_hub_id(path: str) -> bool:
    """Says whether a data path that is no local file or directory can be a hub id."""
    return not (is_local(path) or path.endswith(SUFFIXES))


class Source(Settings):
    """One place that rows come from: a local file, a directory of files, or a data set on the hub."""

    path: str
    """A file (JSON Lines, JSON array, Parquet, Arrow, CSV, text; perhaps .gz, .bz2, .xz or .zst), a directory of such
    files or of `save_to_disk` of datasets, a hub id, or `lab:…`."""
    name: str | None = None
    """The configuration of a hub data set."""
    split: str = "train"
    """The split of a hub data set, or of one that `save_to_disk` wrote."""
    revision: str | None = None
    """The revision of a hub data set."""
    lines: bool = False
    """A text file holds one text a line; else its texts are parted by blank lines."""
    columns: dict[str, str] = {}
    """Spunge's column name → the source's own, such as `{prompt: question, response: answer}`; a dot leads into a
    column that holds fields, such as `{prompt: prompt.text}`."""
    set: dict[str, Any] = {}
    """Columns to add with one value for every row, such as `{domain: bio}`."""
    blocks: dict[str, Annotated[int, Field(ge=1)]] = {}
    """Columns to add that count blocks of so many rows from 0, such as `{author: 20}`: twenty rows an author."""
    compute: dict[str, str] = {}
    """Columns to add by a polars SQL expression, such as `{toxic: "toxicity_ai + toxicity_human > 5.5"}`."""
    where: str | None = None
    """Keep only rows for which this polars SQL expression is true, such as `LENGTH(TRIM(text)) > 0`."""
    max_length: int | None = None
    """Texts of this source are cut to so many tokens, whatever the method's own limit."""

    def files(self) -> list[Path]:
        """Returns the local files that the rows come from; none of a hub data set, which stays as it was fetched."""
        path = locate(self.path)
        return files_below(path) if path.is_dir() else [path] if path.is_file() else []


@dataclass(frozen=True, eq=False)
class Corpus:
    """Rows of text with their attributes: a `text` column, or `prompt` and `response`, and anything else.

    A `system` column says what a chat model is told before the prompt.
    """

    rows: pl.DataFrame

    def __post_init__(self) -> None:
        if not isinstance(self.rows, pl.DataFrame):
            raise TypeError(f"a Corpus holds a polars frame, not {type(self.rows).__name__}: spunge.rows(…) reads one")

    def __len__(self) -> int:
        return self.rows.height

    @property
    def texts(self) -> list[str]:
        """The whole text of every row; a prompt and its response are joined by a space where there is no text."""
        joined = pl.concat_str("prompt", "response", separator=" ")
        if "system" in self.rows.columns:
            joined = pl.coalesce(pl.concat_str("system", "prompt", "response", separator=" "), joined)
        if "text" not in self.rows.columns:
            return self.rows.select(joined).to_series().to_list()
        if self.rows["text"].null_count() == 0:
            return self.rows["text"].to_list()
        # Sources of both kinds were put together.
        return self.rows.select(pl.coalesce("text", joined)).to_series().to_list()

    @property
    def max_lengths(self) -> list[int | None]:
        """The token limit that each row's source set, or None."""
        if MAX_LENGTH not in self.rows.columns:
            return [None] * len(self)
        return self.rows[MAX_LENGTH].to_list()

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of everything an unlearner may read, in order."""
        return _digest(self.rows.select([name for name in CONTENT if name in self.rows.columns]))

    @cached_property
    def full_fingerprint(self) -> str:
        """The sha256 of every column, attributes included: what a splitter or an evaluator may read."""
        return _digest(self.rows.select(sorted(self.rows.columns)))

    def topics(self) -> dict[str, Corpus]:
        """Splits by the `subset` column, in order of first appearance; one topic named `forget` without it."""
        if SUBSET not in self.rows.columns:
            return {"forget": self}
        names = self.rows[SUBSET].unique(maintain_order=True).to_list()
        return {name: Corpus(self.rows.filter(pl.col(SUBSET) == name)) for name in names}

    def without(self, others: Corpus) -> Corpus:
        """Returns the rows that say something else than any row of `others`."""
        texts = pl.Series(others.texts)
        return Corpus(self.rows.filter(~pl.Series(self.texts).is_in(texts.implode())))

    def select(self, indices: Sequence[int]) -> Corpus:
        """Returns the rows with these indices, in the order given."""
        return Corpus(self.rows[list(indices)])

    def with_subset(self, subset: str) -> Corpus:
        """Returns the same rows, all in one subset of this name."""
        return Corpus(self.rows.with_columns(pl.lit(subset).alias(SUBSET)))

    def where(self, expression: str) -> Corpus:
        """Returns the rows for which a polars SQL expression over the columns is true.

        Raises:
            DataError: The expression cannot be evaluated on these columns, or is neither true nor false.
        """
        return Corpus(self.rows.filter(pl.Series(self.mask(expression), dtype=pl.Boolean)))

    def mask(self, expression: str, *, label: str = "where") -> list[bool]:
        """Says for every row whether a polars SQL expression over the columns is true; null counts as false.

        Args:
            expression: The expression.
            label: What errors call it.

        Raises:
            DataError: The expression cannot be evaluated on these columns, or is neither true nor false.
        """
        values = self.evaluate(expression, label=label)
        if values.dtype != pl.Boolean:
            raise DataError(f"{label}: {expression!r} gives {values.dtype}, not true or false")
        return values.fill_null(False).to_list()

    def evaluate(self, expression: str, *, label: str) -> pl.Series:
        """Returns what a polars SQL expression over the columns gives for every row; `label` is what errors call it.

        Raises:
            DataError: The expression cannot be evaluated on these columns.
        """
        shown = repr(expression if len(expression) <= 200 else f"{expression[:200]}…")
        try:
            expressions.check(expression)
        except ValueError as error:
            raise DataError(f"{label}: {error} (in {shown})") from error
        try:
            with expressions.panics_unheard():
                values = self.rows.select(pl.sql_expr(expression).alias("_"))["_"]
        except pl.exceptions.PanicException as error:
            reason = f"polars panics: {expressions.in_words(error)}"
            raise DataError(f"{label}: cannot evaluate {shown}: {reason}") from error
        except pl.exceptions.PolarsError as error:
            reason = f"{expressions.in_words(error)}; {_columns_in_words(self.rows)}"
            # SQL's double quotes are for the names of columns, as bare words are.
            unknown = re.findall(r'"([^"]*)"', expression) + re.findall(r'unable to find column "([^"]*)"', str(error))
            names = [name for name in unknown if name not in self.rows.columns]
            if names:
                reason += f"; text stands in single quotes: '{names[0]}'"
            raise DataError(f"{label}: cannot evaluate {shown}: {reason}") from error
        if len(values) not in (1, len(self)):
            raise DataError(f"{label}: {shown} gives {len(values)} values for {len(self)} rows")
        return values if len(values) == len(self) else values.new_from_index(0, len(self))  # one for all


def concatenate(corpora: Iterable[Corpus]) -> Corpus:
    """Stacks corpora; a column that one of them lacks is null there.

    Raises:
        DataError: A column holds what cannot stand in one column, such as text in one and a list in another.
    """
    return Corpus(stack([corpus.rows for corpus in corpora]))


def take_turns(corpora: Sequence[Corpus]) -> Corpus:
    """Stacks corpora row by row: the first of each, then the second; shorter ones begin again until all are as long.

    So that a method that reads the first rows alone sees all of them alike.
    """
    longest = max(map(len, corpora))
    starts = accumulate(map(len, corpora), initial=0)
    spans = [(start, len(corpus)) for start, corpus in zip(starts, corpora, strict=False)]
    return concatenate(corpora).select([start + row % size for row in range(longest) for start, size in spans])


def load_corpus(sources: Sequence[Source], *, require: str = "text") -> Corpus:
    """Reads sources into one corpus.

    Args:
        sources: Where the rows come from, in order.
        require: `text`: rows must hold a text, or a prompt and a response; `rows`: any columns will do.

    Raises:
        DataError: A source is missing, unreadable, empty, or lacks a column.
    """
    if not sources:
        raise DataError("no source is given: name at least one file or hub data set")
    frames = [_read(source, require) for source in sources]
    corpus = concatenate(Corpus(frame) for frame in frames)
    if not len(corpus):
        raise DataError(f"{sources[0].path}: no rows")
    return corpus


def corpus_of(source: Source, data: Any) -> Corpus:
    """Makes a corpus of rows in memory, with what a source says of columns and rows done to them.

    Args:
        source: What to do; its path is what errors call the rows.
        data: A list of texts or of rows as mappings, or a frame of polars, pandas or `datasets`.

    Raises:
        DataError: They are none of these, none at all, or lack a text.
    """
    frame = _prepared(source, _frame(source, data), "text")
    if not frame.height:
        raise DataError(f"{source.path}: no rows")
    return Corpus(frame)


def _frame(source: Source, data: Any) -> pl.DataFrame:
    if isinstance(data, Sequence) and all(isinstance(row, str) for row in data):
        if file := next((text for text in data if text.endswith(SUFFIXES) and "\n" not in text), None):
            raise DataError(f"{source.path}: {file!r} in a list is a text, not a file: read each file by itself")
        return pl.DataFrame({"text": list(data)}, schema={"text": pl.String})
    try:
        if isinstance(data, pl.DataFrame):
            return data
        if isinstance(data, Sequence):
            return pl.DataFrame([dict(row) for row in data], infer_schema_length=None)
        if hasattr(data, "to_polars"):  # a data set of `datasets`
            return data.to_polars()
        return pl.DataFrame(data.to_dict("list"))  # a frame of pandas, without pyarrow's own idea of its index
    except (pl.exceptions.PolarsError, AttributeError, TypeError, ValueError) as error:
        raise DataError(
            f"{source.path}: a {type(data).__name__} is no rows ({first_line(error)}): give a list of texts or of "
            "mappings, a frame of polars or pandas, or a Dataset"
        ) from error


def _digest(rows: pl.DataFrame) -> str:
    # Polars panics where bytes are to become JSON: cells that hold some (images, hashes) are hashed one by one.
    for name, dtype in rows.schema.items():
        if _holds_bytes(dtype):
            digests = [None if cell is None else item_id(cell) for cell in rows[name].to_list()]
            rows = rows.with_columns(pl.Series(name, digests, dtype=pl.String))
    digest = hashlib.sha256()
    for part in rows.iter_slices(_DIGESTED):
        digest.update(part.write_ndjson().encode())
    texts = rows.select(pl.col(name) for name in CONTENT if rows.schema.get(name) == pl.String)
    if texts.select(pl.any_horizontal(pl.lit(False), pl.all().str.contains(_BEGUN).any())).to_series().any():
        # Such a row was once begun twice, and results that were stored of it are no longer those of its tokens. Which
        # tokens begin a text is the tokenizer's to say, and this does not know it: some rows are asked again in vain.
        digest.update(b"begun once")
    return digest.hexdigest()


def _holds_bytes(dtype: pl.DataType) -> bool:
    if isinstance(dtype, pl.Struct):
        return any(_holds_bytes(cast("pl.DataType", field.dtype)) for field in dtype.fields)
    if isinstance(dtype, pl.List | pl.Array):
        return _holds_bytes(cast("pl.DataType", dtype.inner))
    return dtype in (pl.Binary, pl.Object)


def column_names(path: str) -> list[str]:
    """Returns the columns of a local file or hub data set, as they are named there."""
    return frame_of(path).columns


def frame_of(path: str, *, lines: bool = False) -> pl.DataFrame:
    """Returns the rows of a local file or hub data set as they are there.

    Args:
        path: As of a source.
        lines: Whether a text file holds one text a line.

    Raises:
        DataError: It is missing or unreadable.
    """
    return _raw(Source(path=path, lines=lines))


def item_id(*parts: Any) -> str:
    """Returns the stable name of an evaluation item: a hash of its content, never of its position."""
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True, default=_as_json)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _as_json(cell: Any) -> str:
    return cell.hex() if isinstance(cell, bytes) else str(cell)


def _read(source: Source, require: str) -> pl.DataFrame:
    return _prepared(source, _raw(source), require)


def _prepared(source: Source, raw: pl.DataFrame, require: str) -> pl.DataFrame:
    """Does to rows what their source says, and checks that there is a text where one is required."""
    rows = _unnested(source, raw)
    missing = [name for name in source.columns.values() if name not in rows.columns]
    if missing:
        raise DataError(f"{source.path}: no column {missing[0]!r}; {_columns_in_words(rows)}")
    clashes = [name for name in rows.columns if name.startswith(RESERVED)]
    clashes += [ours for ours, theirs in source.columns.items() if ours != theirs and ours in rows.columns]
    if clashes:
        raise DataError(
            f"{source.path}: it has a column {clashes[0]!r} already, which is needed here; rename or drop it"
        )
    rows = rows.rename({theirs: ours for ours, theirs in source.columns.items()}, strict=True)
    rows = rows.with_columns(**{name: pl.lit(value) for name, value in source.set.items()})
    rows = rows.with_columns(**{name: pl.int_range(pl.len()) // size for name, size in source.blocks.items()})
    for name, expression in source.compute.items():
        rows = rows.with_columns(Corpus(rows).evaluate(expression, label=f"{source.path}: compute.{name}").alias(name))
    if source.where is not None:
        rows = rows.filter(pl.Series(Corpus(rows).mask(source.where, label=f"{source.path}: where"), dtype=pl.Boolean))
        if not rows.height:
            raise DataError(f"{source.path}: no row for which {source.where!r} is true")
    if source.max_length is not None:
        rows = rows.with_columns(pl.lit(source.max_length).alias(MAX_LENGTH))
    if require == "text" and rows.height:
        _check_text(source, rows)
    return rows


def _unnested(source: Source, rows: pl.DataFrame) -> pl.DataFrame:
    """Puts the fields that `columns` leads into beside the columns that hold them, which go."""
    paths = {theirs: theirs.split(".", 1) for theirs in source.columns.values() if theirs not in rows.columns}
    nested = {theirs: path for theirs, path in paths.items() if len(path) == 2 and path[0] in rows.columns}
    for theirs, (column, name) in nested.items():
        dtype = rows.schema[column]
        if not isinstance(dtype, pl.Struct) or name not in {field.name for field in dtype.fields}:
            raise DataError(f"{source.path}: column {column!r} has no field {name!r}; it holds {dtype}")
        rows = rows.with_columns(pl.col(column).struct.field(name).alias(theirs))
    return rows.drop({column for column, _ in nested.values()})


def _raw(source: Source) -> pl.DataFrame:
    path = locate(source.path)
    if path.exists():
        return read_local(path, Reading(source.split, source.lines))
    if not is_hub_id(source.path):
        raise DataError(f"{source.path}: no such file or directory")
    return read_hub(source.path, source.name, source.split, source.revision)


def _check_text(source: Source, rows: pl.DataFrame) -> None:
    if "text" in rows.columns:
        wanted = ["text"]
    elif {"prompt", "response"} <= set(rows.columns):
        wanted = ["prompt", "response"]
    else:
        spelt = next((name for name in rows.columns if name.strip().lower() == "text"), "…")
        raise DataError(
            f"{source.path}: no column 'text' (nor 'prompt' and 'response'); {_columns_in_words(rows)}; "
            f"name yours with --columns {shlex.quote(f'text={spelt}')}, or `columns: {{text: {spelt!r}}}` in a recipe"
        )
    for name in wanted:
        if rows[name].dtype != pl.String:
            raise DataError(f"{source.path}: column {name!r} holds {rows[name].dtype}, not text")
        empty = rows[name].is_null() | (rows[name].str.strip_chars() == "")
        if empty.any():
            count, first = int(empty.sum()), int(empty.arg_true()[0])
            raise DataError(f"{source.path}: row {first + 1} has an empty {name!r} ({count} such rows); remove them")


def _columns_in_words(rows: pl.DataFrame) -> str:
    names = [name if name == name.strip() and name else repr(name) for name in rows.columns]
    return f"columns are {', '.join(names) or 'none'}"

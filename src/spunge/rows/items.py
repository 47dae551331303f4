"""Rows of an evaluation set as items with stable names, and what was measured on them as one long table."""

from __future__ import annotations

import json
import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import polars as pl
from pydantic import Field

from spunge.errors import DataError
from spunge.files import FileMemory
from spunge.rows.groups import toxigen_group
from spunge.rows.sources import Source, item_id, load_corpus
from spunge.settings import Settings

ItemTable: TypeAlias = pl.DataFrame
"""What an evaluation measured, one row an item and metric, in the columns of `SCHEMA`."""

SCHEMA: Mapping[str, type[pl.DataType]] = {
    "suite": pl.String,
    "task": pl.String,
    "item": pl.String,
    "attributes": pl.String,
    "metric": pl.String,
    "value": pl.Float64,
    "text": pl.String,
}
"""One row a variant, item and metric. `item`: `item_id` of the item's content. `attributes`: a JSON object such
as `{"group": "mexican"}` (a list where an item has several values). `value`: the metric, 0 or 1 where it is a verdict.
`text`: what the value is about (a prompt, a completion), null where there is nothing to show."""

RUN_FORMAT = 1
"""The version of what lies in a run's directory: `manifest.json`, and `items.parquet` in the columns of `SCHEMA`."""
JOURNAL = "journal.jsonl"
"""In a run's directory while it runs: a line for every task that has ended since the manifest was written. A line whose
`number` is below the manifest's count of stages is in there already."""

_MEMORY: FileMemory[dict[str, Mapping[str, Any]]] = FileMemory()
"""The rows of every suite of this process: its check, its forecast, the cautions and every variant want the same."""

_REMEMBERED = 50_000  # items of a suite; the rows of a larger one are not held between two readings

Part = Literal["all", "validation", "tune", "choose", "test"]
VALIDATION_SHARE = 0.3
"""Of the items, by their hash: to tune and to pick on; what tables show comes from the others."""
_PARTS = {"validation": (0.0, VALIDATION_SHARE), "tune": (0.0, 0.15), "choose": (0.15, 0.3), "test": (0.3, 1.0)}
"""Where a part's hashes lie. Settings are picked on half of the validation part where λ is chosen on the other half."""


NAN = "nan"
"""The metric that is 1 where the model gave NaN on an item, so that nothing could be measured: such a model is broken,
and has not forgotten."""


REFERENCE = "reference"
"""The metric that is 1 where a better reader than the one who gave the verdicts calls an answer positive, 0 where not;
there where that reader was asked, so that the verdicts' error is known."""

FAMILIARITY = "familiarity"
"""The metric that says how familiar a row is to a model, higher the more, on a scale of its own: only its order counts.
"""
MEMBER = "member"
"""The metric beside it that is 1 where the base model was trained on the row, 0 where it never read it."""

_SAMPLED, _FEWEST = 0.2, 30
"""Of a suite's items, by their hash, what is a random sample of it; at least about so many."""


class Focus(Settings):
    """Which items are asked of a model that only some of them are about: those, and a random sample of all."""

    value: str
    """Items with this value of an attribute are asked, in ToxiGen's spellings too."""
    attributes: tuple[str, ...]
    """The columns of attributes."""
    needed: bool
    """Whether all are asked where none has the value; else the sample is."""

    def chosen(self, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
        """Returns those of the rows, by item name, that are asked."""
        meant = {name for name, row in rows.items() if any(self._is_of(row.get(each)) for each in self.attributes)}
        if self.needed and not meant:
            return {**rows}
        return {name: row for name, row in rows.items() if name in meant or is_sampled(name, len(rows))}

    def _is_of(self, cell: Any) -> bool:
        values = [str(each) for each in (cell if isinstance(cell, list) else [cell]) if each is not None]
        return self.value in values or any(_group(value) == self.value for value in values)


def _group(value: str) -> str | None:
    with suppress(DataError):
        return toxigen_group(value)
    return None


def is_sampled(item: str, count: int) -> bool:
    """Whether an item is in the random sample of a suite of so many: for every model and in every run the same ones."""
    # Of the name's own digits `limit` and a part make use: the choices must not depend on each other.
    return zlib.crc32(item.encode()) / 2**32 < max(_SAMPLED, _FEWEST / count)


@dataclass(frozen=True)
class Item:
    """One question, prompt or text of an evaluation set."""

    id: str
    """A hash of the row's content, so that the same row has the same name wherever it stands."""
    attributes: str
    """JSON object of the row's attributes."""
    row: Mapping[str, Any]
    """The whole row, by column."""


@dataclass(frozen=True)
class Measurement:
    """What was measured on one item."""

    item: Item
    task: str
    values: Mapping[str, float | None]
    """Metric → value; None where it could not be measured."""
    texts: Mapping[str, str]
    """Metric → text, for what has words and no number."""


def load_items(
    sources: Sequence[Source],
    *,
    needs: Sequence[str] = (),
    attributes: Sequence[str] | Mapping[str, Callable[[Any], Any]] = (),
    where: str | None = None,
    limit: int | None = None,
    part: Part = "all",
    focus: Focus | None = None,
) -> list[Item]:
    """Reads the items of an evaluation set.

    Args:
        sources: Where the rows come from.
        needs: Columns that the evaluator reads.
        attributes: Columns that become the item's attributes; a list stays a list. Each may have a function that reads
            its cells, as files spell one value in several ways.
        where: A polars SQL expression that keeps a row.
        limit: Keeps so many rows, the first by their hash, so that every variant and run keeps the same.
        part: `validation` is the 30 % of the rows whose hash is lowest in another digit, `tune` and `choose` its two
            halves, `test` the rest.
        focus: Keeps of all these what a model that only some are about is asked.

    Raises:
        DataError: A column is missing, or no row is left.
    """
    readers = attributes if isinstance(attributes, Mapping) else dict.fromkeys(attributes, as_it_is)
    choice = (tuple(source.model_dump_json() for source in sources), where, limit, part)
    files = [file for source in sources for file in source.files()]
    rows = _MEMORY.recall(choice, files, lambda: _choose_rows(sources, where, limit, part))
    if len(rows) > _REMEMBERED:
        _MEMORY.forget(choice)
    columns = next(iter(rows.values()))
    rows = rows if focus is None else focus.chosen(rows)
    for name in (*needs, *readers):
        if name not in columns:
            named = ", which `attributes` names" if name in readers else ""
            raise DataError(f"{sources[0].path}: no column {name!r}{named}; columns are {', '.join(columns)}")
    items = []
    for name, row in rows.items():
        values = {column: read(row[column]) for column, read in readers.items()}
        items.append(Item(name, json.dumps(values, ensure_ascii=False, default=str), row))
    return items


def _choose_rows(
    sources: Sequence[Source], where: str | None, limit: int | None, part: Part
) -> dict[str, Mapping[str, Any]]:
    """Returns item name → row, in the order of the files."""
    corpus = load_corpus(sources, require="rows")
    if where is not None:
        corpus = corpus.where(where)
    rows: dict[str, Mapping[str, Any]] = {}
    seen: Counter[str] = Counter()
    for row in corpus.rows.iter_rows(named=True):
        content = item_id(row)
        # Benchmarks repeat rows; a second one is another item, not the same one twice.
        seen[content] += 1
        name = content if seen[content] == 1 else item_id(content, seen[content])
        if part == "all" or _is_in(name, part):
            rows[name] = row
    if limit is not None:
        chosen = set(sorted(rows)[:limit])
        rows = {name: row for name, row in rows.items() if name in chosen}
    if not rows:
        raise DataError(f"{sources[0].path}: no rows left after where={where!r}, part={part!r}, limit={limit!r}")
    return rows


class RowSettings(Settings):
    """Settings that say which rows are asked about."""

    sources: tuple[Source, ...]
    """Where they come from."""
    attributes: tuple[str, ...] = ()
    """Columns that become the item's attributes."""
    where: str | None = None
    """A polars SQL expression that keeps a row."""
    part: Part = "all"
    """Which rows, by their hash: `validation` (30 %, to tune on), `test` (the rest), or `all`."""
    limit: int | None = Field(default=None, ge=1)
    """Asks only so many rows, the first by their hash."""
    focus: Focus | None = Field(default=None, exclude_if=lambda focus: focus is None)
    """Asks of those only what has a value of an attribute, and a random sample: set by a run for subsets' models."""
    outside_key: ClassVar[frozenset[str]] = frozenset({"focus"})  # in the key of the task, where there is one

    in_part: ClassVar[bool] = False
    """Whether items are measured each by itself, so that a model may be asked some of them."""

    @property
    def attribute_columns(self) -> tuple[str, ...]:
        """The columns of the items' attributes."""
        return self.attributes


def suite_items(settings: RowSettings, *needs: str, **options: Any) -> list[Item]:
    """Reads the items that settings ask about; see `load_items` for the rest."""
    chosen = {"where": settings.where, "limit": settings.limit, "part": settings.part, "focus": settings.focus}
    try:
        return load_items(settings.sources, needs=needs, **{"attributes": settings.attributes, **chosen, **options})
    except DataError as error:
        suite = getattr(settings, "suite", None)
        raise DataError(f"suite {suite!r}: {error}" if suite else str(error)) from error


def attribute_values(attributes: str | None) -> dict[str, list[str]]:
    """Returns an item's attributes as lists of values; an item may have several values of one."""
    parsed = json.loads(attributes) if attributes else {}
    return {
        str(name): [str(each) for each in (value if isinstance(value, list) else [value]) if each is not None]
        for name, value in parsed.items()
    }


def item_table(suite: str, measured: Iterable[Measurement]) -> ItemTable:
    """Returns the long table: one row an item and metric, then one an item and text."""
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA}

    def add(one: Measurement, metric: str, value: float | None, text: str | None) -> None:
        row = (suite, one.task, one.item.id, one.item.attributes, metric, value, text)
        for name, cell in zip(SCHEMA, row, strict=True):
            columns[name].append(cell)

    for one in measured:
        for metric, value in one.values.items():
            add(one, metric, None if value is None else float(value), None)
        for metric, text in one.texts.items():
            add(one, metric, None, text)
    return pl.DataFrame(columns, schema=dict(SCHEMA))


def mean_values(table: ItemTable, metrics: Sequence[str]) -> dict[str, float]:
    """Returns the mean of those of these metrics that a table has; a perplexity is that of all its tokens together.

    Where the model gave NaN on an item there is no mean at all: of the others alone, it would be another suite's.
    """
    if unscored(table):
        return {}
    values = table.group_by("metric").agg(pl.col("value").mean())
    means = {metric: mean for metric, mean in values.iter_rows() if mean is not None}
    if "nll" in means and means.get("tokens"):
        means["perplexity"] = math.exp(min(means["nll"] / means["tokens"], 700.0))
    return {metric: means[metric] for metric in metrics if metric in means}


def unscored(table: ItemTable) -> int:
    """Returns on how many items the model gave NaN: the evaluator notes `nan` = 1 there, and nothing else."""
    return table.filter((pl.col("metric") == NAN) & (pl.col("value") > 0)).height


def check_items(table: Any, suite: str, origin: str) -> None:
    """Refuses what is no item table of a suite: an evaluator from outside the package may return anything.

    Args:
        table: What it returned.
        suite: Whose items they should be.
        origin: The evaluator and the variant, for the message.

    Raises:
        DataError: A column is missing or of another type, a row names another suite, says nothing of what it is about,
            or stands twice, or a value is not finite (null is for what could not be measured).
    """
    if not isinstance(table, pl.DataFrame):
        raise DataError(
            f"{origin}: returned {type(table).__name__}, not an item table (see spunge.rows.items.item_table)"
        )
    wrong = [f"{name} ({kind.__name__})" for name, kind in SCHEMA.items() if table.schema.get(name) != kind]
    if wrong or table.width != len(SCHEMA):
        wrong = wrong or [f"{name} (not one of them)" for name in table.columns if name not in SCHEMA]
        raise DataError(f"{origin}: items have the columns {', '.join(SCHEMA)} alone; wrong: {', '.join(wrong)}")
    if not table.height or set(table["suite"].unique()) != {suite}:
        names = ", ".join(map(str, table["suite"].unique().sort())) or "no suite"
        raise DataError(f"{origin}: its items are of {names}, and should be of {suite}")
    keys = ["task", "item", "metric"]
    if table.select(pl.any_horizontal(pl.col(keys).is_null().any())).item() or table.select(keys).is_duplicated().any():
        raise DataError(f"{origin}: every item needs a task, a name and each metric once")
    if not all(map(_is_object, table["attributes"].unique())):
        raise DataError(f"{origin}: every item's attributes are a JSON object, such as {{}}")
    endless = table.filter(pl.col("value").is_not_null() & ~pl.col("value").is_finite())
    if endless.height:
        metric, value = endless.select("metric", "value").row(0)
        raise DataError(
            f"{origin}: {metric} is {value} on {endless.height} items; note null there, and `{NAN}` = 1 where the "
            "model gave NaN"
        )


def _is_object(attributes: str | None) -> bool:
    try:
        return attributes is None or isinstance(json.loads(attributes), dict)
    except ValueError:
        return False


def as_it_is(cell: Any) -> Any:
    """Reads an attribute's cell that needs no reading."""
    return cell


def _is_in(item: str, part: Part) -> bool:
    # The last digits: `limit` sorts by the first ones, and the two choices must not depend on each other.
    low, high = _PARTS[part]
    return low <= int(item[-8:], 16) / 16**8 < high

"""A first recipe for a data file: what its columns seem to be, as settings with a comment on each choice."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from spunge.errors import DataError
from spunge.rows.sources import frame_of

_TEXTS = ("text", "content", "body", "sentence", "comment", "document", "passage", "generation", "post", "message")
"""What a column of texts is often called, the likeliest first."""
_PAIRS = (
    ("prompt", "response"), ("prompt", "completion"), ("question", "response"), ("question", "answer"),
    ("instruction", "output"), ("instruction", "response"), ("query", "answer"), ("input", "output"),
)  # fmt: skip
"""What columns of prompts and responses are often called."""
_ATTRIBUTES = (
    "domain", "group", "target_group", "topic", "subject", "category", "author", "kind", "type", "class", "source",
    "label", "language",
)  # fmt: skip
"""What a column is often called by which a forget set is worth splitting."""
_QUESTIONS = {"question", "choices", "answer"}
"""The columns of multiple-choice questions."""
FEWEST_ROWS = 8
"""Of a subset: of fewer nothing is learnt that could be unlearned apart."""
MOST_SUBSETS = 16
"""More are not worth training."""
MOST_VALUES = 4 * MOST_SUBSETS
LEVELS = re.compile(r"toxic|hate|offens|harm", re.IGNORECASE)
"""Columns that say how bad a row is: what to filter by, and no subject that could be unlearned apart."""
_HELD_OUT = 5
"""Every so manieth row is asked about and not unlearned."""
_FEW = 8 * _HELD_OUT
"""Of fewer rows none is held out."""


@dataclass(frozen=True)
class Look:
    """What the columns of a data file seem to be."""

    path: str
    rows: int
    columns: tuple[str, ...]
    content: dict[str, str]
    """Spunge's name → the file's own column, of the text or of prompt and response."""
    empty: int
    """Rows that have none of it."""
    attribute: str | None = None
    """The column to split by."""
    counts: tuple[tuple[str, int], ...] = ()
    """Its values, the most frequent first."""
    unattributed: int = 0
    """Rows without a value."""
    others: tuple[str, ...] = ()
    """Other columns that could be split by."""
    lines: bool = False
    """A text file of one text a line."""

    @property
    def index(self) -> str:
        """A name for the number of a row, which the file does not use."""
        return next(name for name in ("nth", "nth_row", "nth_of_this_file") if name not in self.columns)

    def source(self, held_out: bool | None) -> dict[str, Any]:
        """Returns the rows as a source: all, those that are held out, or the others."""
        renamed = {ours: theirs for ours, theirs in self.content.items() if ours != theirs}
        source: dict[str, Any] = {"path": self.path, "lines": self.lines, "columns": renamed}
        where = [f"LENGTH(TRIM({name})) > 0" for name in self.content] if self.empty else []
        if held_out is not None and self.rows >= _FEW:
            source["blocks"] = {self.index: 1}
            where.append(f"{self.index} % {_HELD_OUT} {'=' if held_out else '<>'} 0")
        return {name: part for name, part in {**source, "where": " AND ".join(where)}.items() if part}

    def suite(self, name: str, goal: str) -> dict[str, Any]:
        """Returns an evaluator of the rows that are held out."""
        method = "perplexity" if "text" in self.content else "memorization"
        attributes = [self.attribute] if goal == "forget" and self.attribute else []
        suite: dict[str, Any] = {"suite": name, "method": method, "goal": goal}
        if attributes:
            suite["attributes"] = attributes
        return {**suite, "sources": [self.source(True)]}


def look(path: str, *, by: str | None = None) -> Look:
    """Reads a data file and says what its columns seem to be.

    Args:
        path: A file, a directory or a hub id, as of a source.
        by: The column to split by; None: the likeliest.

    Raises:
        DataError: It cannot be read, has no rows, no column of texts, or no column `by`.
    """
    frame, lines = frame_of(path), False
    if path.endswith((".txt", ".text")) and frame.height < 3:  # one paragraph: its lines are the texts
        frame, lines = frame_of(path, lines=True), True
    if not frame.height:
        raise DataError(f"{path}: no rows")
    if set(frame.columns) >= _QUESTIONS:
        raise DataError(f"{path}: multiple-choice questions, which are asked and not unlearned: name it as --questions")
    content = _content(path, frame)
    texts = [pl.col(name).is_null() | (pl.col(name).str.strip_chars() == "") for name in content.values()]
    empty = int(frame.select(pl.any_horizontal(texts).sum()).item())
    likely = attributes(frame, content.values())
    if by is not None and by not in frame.columns:
        raise DataError(f"{path}: no column {by!r} to split by; columns are {', '.join(frame.columns)}")
    attribute = by or next(iter(likely), None)
    seen = Look(path, frame.height, tuple(frame.columns), content, empty, lines=lines)
    if attribute is None:
        return seen
    counts = _counts(frame[attribute])
    valued = int(frame.height - frame[attribute].null_count())
    others = tuple(name for name in likely if name != attribute)
    return Look(
        path, frame.height, seen.columns, content, empty, attribute, counts, frame.height - valued, others, lines
    )


def questions(path: str, attribute: str | None) -> dict[str, Any]:
    """Returns an evaluator of multiple-choice questions about what must go.

    Args:
        path: Rows with question, choices and answer.
        attribute: The column that the forget set is split by; asked by its values where the questions have it too.

    Raises:
        DataError: It cannot be read, or lacks a column.
    """
    columns = frame_of(path).columns
    if missing := sorted(_QUESTIONS - set(columns)):
        raise DataError(f"{path}: no column {missing[0]!r}; columns are {', '.join(columns)}")
    suite: dict[str, Any] = {"suite": "questions", "method": "multiple_choice", "goal": "forget"}
    if attribute in columns:
        suite["attributes"] = [attribute]
    return {**suite, "sources": [{"path": path}]}


def draft(
    name: str, model: str, forget: Look, retain: Look | None = None, asked: Mapping[str, Any] | None = None
) -> str:
    """Returns a recipe with comments, as YAML.

    Args:
        name: What the experiment is called.
        model: The base model's directory or hub id.
        forget: What must go.
        retain: What must stay; without it nothing is known of the damage, and the recipe says so.
        asked: Another suite of what must go, as `questions` returns it.
    """
    held = forget.rows >= _FEW
    lines = [
        f"# A first recipe, drafted by `spunge init` from {forget.path}: {_rows(forget)}. Read it, then",
        f"#   spunge plan {name}.yaml     what would run, how long it takes, and what is odd in the data",
        f"#   spunge run {name}.yaml",
        "# `spunge methods` lists every method, `spunge methods NAME` shows one with its settings.",
        "",
        f"name: {_quoted(name)}",
        f"model: {{id: {_quoted(model)}}}",
        "",
        *_comment(f"What must go. Columns: {', '.join(forget.columns)}."),
        "forget:",
        f"  sources: [{_flow(forget.source(False if held else None))}]",
    ]
    if held:
        lines += _comment(f"  Every {_HELD_OUT}th row is left out here, and asked about below.")
    lines += ["  # where: level >= 3        # which rows of each subset count, by any column", ""]
    if retain is not None:
        lines += [
            *_comment(f"What must stay: {_rows(retain)}. Best are texts of the same kind that are harmless."),
            "retain:",
            f"  sources: [{_flow(retain.source(False if retain.rows >= _FEW else None))}]",
            "",
        ]
    else:
        lines += [
            *_comment(
                "What must stay: none was named (--retain FILE), so nothing holds the rest while the forget set is "
                "unlearned, nothing is compared at the same damage, and most methods cannot be used. Fill it in:"
            ),
            "# retain:",
            "#   sources: [{path: benign.txt}]    # texts between blank lines, or JSON Lines, CSV, Parquet …",
            "",
        ]
    lines += [*_split(forget), "", *_method(retain is not None), ""]
    lines += [
        "# TIES keeps this share of each task vector's largest entries. Nothing is trained again to try another:",
        f"# spunge run {name}.yaml --sweep merge.density=0.1,0.2,0.5",
        "merge: {method: ties, density: 0.2}",
        "",
        *_comment(
            "What every model is asked. `goal: forget` is what must go, `goal: retain` what must stay. Better than "
            "texts are questions in other words than the forget set's (--questions FILE); docs/howto.md has more."
        ),
        "evaluate:",
        *([] if asked is None else _suite(asked)),
        *_suite(forget.suite("must-go", "forget")),
    ]
    if not held:
        lines += _comment(f"  These {forget.rows} rows are unlearned and asked alike: too few to hold some out.")
    if retain is not None:
        lines += _suite(retain.suite("must-stay", "retain"))
    lines += ["", "# Attacks that try to bring it back: cheap, full or some by name. See docs/robustness.md."]
    lines += ["# robustness: cheap", "seeds: [0]    # three show how much is chance: [0, 1, 2]"]
    return "\n".join(lines) + "\n"


def _split(forget: Look) -> list[str]:
    if forget.attribute is None:
        return [
            *_comment(
                "No column tells the rows apart by a few values, so they are clustered by what the base model makes of "
                "them. By a column it is {by: column, column: topic}, by what columns come to {by: expression, …}."
            ),
            "split: {by: cluster, k: 3}",
        ]
    shown = ", ".join(f"{value} ({count})" for value, count in forget.counts[:12])
    more = f" and {len(forget.counts) - 12} more" if len(forget.counts) > 12 else ""
    lines = _comment(f"Split by {forget.attribute}: {shown}{more}.")
    split: dict[str, Any] = {"by": "column", "column": forget.attribute}
    if forget.unattributed:
        lines += _comment(f"{forget.unattributed} rows have none: left out (`own` makes them a subset).")
        split["null"] = "drop"
    if forget.others:
        lines += _comment(f"Others that could be split by: {', '.join(forget.others[:5])}.")
    return [*lines, f"split: {_flow(split)}"]


def _method(holds: bool) -> list[str]:
    about = "How each subset is unlearned. Task vector negation learns the forget set and takes it away"
    about += ", and holds the rest meanwhile (alpha)." if holds else "; it needs nothing that must stay."
    return [
        *_comment(f"{about} RMU, NPO and others need settings of their own for each model: docs/tuning_rmu.md."),
        "# If nothing is forgotten, a larger learning_rate or more epochs; if all is damaged, smaller ones.",
        f"unlearn: {{method: task_vector_negation, learning_rate: 1e-3, epochs: 1{', alpha: 1.0' if holds else ''}}}",
    ]


def _suite(suite: Mapping[str, Any]) -> list[str]:
    first, *rest = [f"{name}: {_flow(part)}" for name, part in suite.items()]
    return [f"  - {first}", *(f"    {line}" for line in rest)]


def _rows(seen: Look) -> str:
    what = "texts" if "text" in seen.content else "prompts with responses"
    empty = f", of which {seen.empty} are empty and left out" if seen.empty else ""
    return f"{seen.rows} {what}{empty}"


def _comment(text: str) -> list[str]:
    indent = " " * (len(text) - len(text.lstrip()))
    clean = " ".join(text.split())
    return [f"{indent}# {line}" for line in textwrap.wrap(clean, 110, break_long_words=False, break_on_hyphens=False)]


def _flow(value: Any) -> str:
    """A value as YAML on one line, its texts bare where that is safe."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_quoted(name)}: {_flow(part)}" for name, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return _quoted(value) if isinstance(value, str) else json.dumps(value)


def _quoted(text: str) -> str:
    # JSON's strings are YAML's; of bare words only those are left bare that mean nothing else.
    plain = text.replace("_", "").replace("-", "").replace("/", "").replace(".", "")
    bare = plain.isascii() and plain.isalnum() and text[0].isalpha() and text.lower() not in _YAML_WORDS
    return text if bare else json.dumps(text, ensure_ascii=False)


_YAML_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf"}


def named_content(frame: pl.DataFrame) -> dict[str, str] | None:
    """Returns Spunge's name → the column of texts, or of prompts and responses, that is called as such often are."""
    strings = [name for name, kind in frame.schema.items() if kind == pl.String]
    lower = {name.lower(): name for name in reversed(strings)}
    for prompt, response in _PAIRS:
        if prompt in lower and response in lower:
            return {"prompt": lower[prompt], "response": lower[response]}
    return next(({"text": lower[name]} for name in _TEXTS if name in lower), None)


def _content(path: str, frame: pl.DataFrame) -> dict[str, str]:
    if named := named_content(frame):
        return named
    strings = [name for name, kind in frame.schema.items() if kind == pl.String]
    lengths = {name: frame[name].str.len_chars().mean() for name in strings}
    known = {name: length for name, length in lengths.items() if isinstance(length, float)}
    if not known:
        raise DataError(
            f"{path}: no column of texts; columns are "
            + ", ".join(f"{name} ({kind})" for name, kind in frame.schema.items())
        )
    return {"text": max(known, key=lambda name: known[name])}


def attributes(frame: pl.DataFrame, content: Iterable[str]) -> list[str]:
    """Returns the columns by which rows seem worth splitting, the likeliest first: a few values of several rows each.

    Args:
        frame: The rows.
        content: The columns that are unlearned.
    """
    likely = []
    for name, kind in frame.schema.items():
        if name in content or LEVELS.search(name):
            continue
        if not (kind in (pl.String, pl.Boolean) or kind.is_integer() or kind == pl.List(pl.String)):
            continue
        counts = _counts(frame[name])
        large = [count for _, count in counts if count >= FEWEST_ROWS]
        if 2 <= len(large) <= MOST_SUBSETS and len(counts) <= MOST_VALUES and sum(large) >= frame.height / 2:
            likely.append(name)
    known = {name: number for number, name in enumerate(_ATTRIBUTES)}
    order = {name: number for number, name in enumerate(frame.columns)}
    # Names before numbers: a level or a score is more often what to filter by.
    return sorted(
        likely,
        key=lambda name: (known.get(name.lower(), len(known)), frame.schema[name].is_integer(), order[name]),
    )


def _counts(column: pl.Series) -> tuple[tuple[str, int], ...]:
    values = column.explode() if isinstance(column.dtype, pl.List) else column
    counted = values.drop_nulls().cast(pl.String).value_counts(sort=True, name="rows")
    return tuple(zip(counted[counted.columns[0]].to_list(), counted["rows"].to_list(), strict=True))


def name_of(path: str) -> str:
    """Returns a name for an experiment on a data file: the file's own, in letters that a directory may have."""
    stem = Path(path).name.split(".")[0]
    name = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in stem).strip("-")[:60]
    return name or "my-first"

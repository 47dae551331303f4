"""What the files given to `spunge auto` hold: texts, answers or questions, and a column to split them by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from string import ascii_uppercase
from typing import Any, Literal

import polars as pl

from spunge.errors import DataError, RecipeError
from spunge.evaluators.multiple_choice import MultipleChoice
from spunge.interfaces import Splitter
from spunge.recipe.drafting import FEWEST_ROWS, LEVELS, MOST_SUBSETS, MOST_VALUES, attributes, named_content
from spunge.rows.groups import toxigen_group
from spunge.rows.overlap import shared_rows
from spunge.rows.sources import CONTENT, Corpus, Source, concatenate, load_corpus
from spunge.splitters import ByCluster, ByColumn
from spunge.splitters.by_column import values_of

Kind = Literal["texts", "answers", "questions"]

FEWEST = {"texts": 60, "answers": 24, "questions": 24}
"""Rows of which three parts can still be asked apart: below that an interval says nothing."""


@dataclass(frozen=True)
class Holding:
    """What some files hold together."""

    kind: Kind
    """What can be asked of them: `questions` where there are any, `answers` of prompts, else `texts`."""
    texts: Corpus
    """What is unlearned, or kept: rows with a `text`, or a `prompt` and a `response`."""
    questions: Corpus | None
    """Multiple-choice questions, in the columns of their files."""
    toxic: str | None
    """A column that tells of toxicity, if there is one."""
    read_as: Mapping[str, str] = field(default_factory=dict)
    """Spunge's name → the file's own column, where it was taken for that by its name."""


def inspect(sources: Sequence[Source], option: str) -> Holding:
    """Reads files and says what they hold; questions without any texts are made into texts too.

    Args:
        sources: The files, each of one kind.
        option: What they were given as (`--forget`), for errors.

    Raises:
        DataError: A file is missing or empty, or its columns are of no known kind.
    """
    texts, questions = [], []
    kind: Kind = "texts"
    read_as: dict[str, str] = {}
    for source in sources:
        rows = load_corpus([source], require="rows")
        columns = set(rows.rows.columns)
        if {"question", "answer"} <= columns and ("choices" in columns or {"A", "B"} <= columns):
            questions.append(rows)
        elif "text" in columns or {"prompt", "response"} <= columns:
            texts.append(load_corpus([source]))
            kind = kind if "text" in columns else "answers"
        elif named := named_content(rows.rows):
            texts.append(load_corpus([_renamed(source, named)]))
            kind = kind if "text" in named else "answers"
            read_as |= {ours: theirs for ours, theirs in named.items() if ours != theirs}
        else:
            raise DataError(
                f"{option} {source.path}: no column 'text', no 'prompt' with 'response', no 'question' with 'answer' "
                f"and choices; columns are {', '.join(rows.rows.columns)}: name yours with --columns text=…"
            )
    asked = concatenate(questions) if questions else None
    unlearned = concatenate(texts) if texts else _solved(sources)
    toxic = next((name for name in unlearned.rows.columns if LEVELS.search(name)), None)
    return Holding("questions" if asked is not None else kind, unlearned, asked, toxic, read_as)


def _renamed(source: Source, content: Mapping[str, str]) -> Source:
    """A source whose columns of content have Spunge's names; what the user calls otherwise is found by its own name."""
    named = {ours: source.columns.get(theirs, theirs) for ours, theirs in content.items()}
    others = {ours: theirs for ours, theirs in source.columns.items() if theirs not in named.values()}
    columns = {ours: theirs for ours, theirs in {**others, **named}.items() if ours != theirs}
    return source.model_copy(update={"columns": columns})


def _solved(sources: Sequence[Source]) -> Corpus:
    """Questions with their right answers, as prompts and responses; other columns stay."""
    suite = MultipleChoice(suite="questions", goal="forget", style="continuation", sources=tuple(sources))
    rows = []
    for question in (one for group in suite.questions().values() for one in group):
        kept = {name: cell for name, cell in question.item.row.items() if name not in ("question", "choices", "answer")}
        right = question.targets[question.right[0]]
        rows.append({**kept, "prompt": question.contexts[0].strip(), "response": str(right)})
    return Corpus(pl.DataFrame(rows, infer_schema_length=None))


def check(forget: Holding, retain: Holding) -> None:
    """Refuses sets that nothing can be learnt from.

    Raises:
        DataError: There are too few rows, or rows that stand in both sets.
    """
    for option, holding in (("--forget", forget), ("--retain", retain)):
        asked = holding.questions if holding.questions is not None else holding.texts
        fewest = FEWEST[holding.kind]
        if len(asked) < fewest:
            raise DataError(
                f"{option}: {len(asked)} {holding.kind} cannot be parted into rows to tune, to choose and to judge on: "
                f"give {fewest} or more, or unlearn them with settings of your own (`spunge unlearn`)"
            )
    shared = shared_rows(forget.texts, retain.texts)
    if forget.questions is not None and retain.questions is not None:
        shared = max(shared, len({*as_asked(forget.questions)} & {*as_asked(retain.questions)}))
    if shared:
        raise DataError(
            f"--forget and --retain share {shared} rows, which cannot both go and stay: remove them from one of the two"
        )


def as_asked(questions: Corpus) -> list[str]:
    """Returns each question with its choices in no order: what else its row holds makes it no other question."""
    rows = questions.rows
    choices = [name for name in rows.columns if name == "choices" or name in ascii_uppercase]
    return [
        str((str(row["question"]).strip(), sorted(str(one) for name in choices for one in _listed(row[name]))))
        for row in rows.iter_rows(named=True)
    ]


def _listed(cell: Any) -> Sequence[Any]:
    return cell if isinstance(cell, list) else [cell]


def splitter_of(texts: Corpus, by: str | None) -> Splitter:
    """Returns how the forget set is split: by the column that is asked for or the first that can, else by clusters.

    Args:
        texts: The forget set.
        by: `--by`: a column, `cluster`, or None for whatever there is.

    Raises:
        RecipeError: There is no such column, or it is of one value, or of too many.
    """
    if by == "cluster":
        return ByCluster(most=6, min_size=FEWEST_ROWS, small="drop")
    if by is not None:
        if by not in texts.rows.columns:
            fit = ", ".join(attributes(texts.rows, CONTENT)) or "none"
            raise RecipeError(f"--by {by}: no such column; those that could be used are {fit}, or cluster")
        counts = _counts(texts, by)
        if len(counts) < 2:
            raise RecipeError(
                f"--by {by}: all {len(texts)} rows have the value {next(iter(counts), 'null')!r}, so there is nothing "
                "to split; use another column or --by cluster"
            )
        large = [name for name, count in counts.items() if count >= FEWEST_ROWS]
        if len(counts) > MOST_VALUES or len(large) > MOST_SUBSETS:
            raise RecipeError(
                f"--by {by}: {len(counts):,} values for {len(texts):,} rows, more than {MOST_SUBSETS} subsets are "
                "worth training; use --by cluster, or a coarser column"
            )
        if len(large) < 2:
            raise RecipeError(
                f"--by {by}: fewer than two of its {len(counts)} values have {FEWEST_ROWS} rows; use --by cluster"
            )
        return _by_column(texts, by)
    found = attributes(texts.rows, CONTENT)
    return _by_column(texts, found[0]) if found else splitter_of(texts, "cluster")


def _by_column(texts: Corpus, column: str) -> ByColumn:
    plain = ByColumn(column=column, null="drop", min_size=FEWEST_ROWS, small="drop")
    spelled = _spelled(texts, column)
    try:
        groups = len({toxigen_group(value) for value in spelled})
    except DataError:
        return plain
    return plain.model_copy(update={"read_as": "toxigen_group"}) if groups > 1 else plain


def _spelled(texts: Corpus, column: str) -> set[str]:
    return {value for cell in texts.rows[column].to_list() for value in values_of(cell)}


def _counts(texts: Corpus, column: str) -> Counter[str]:
    return Counter(value for cell in texts.rows[column].to_list() for value in set(values_of(cell)))

"""Rows as tokens, tokens as padded batches, and the order of a whole run's batches, drawn before it starts."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Literal

import torch
from jinja2 import TemplateError
from torch import Tensor

from spunge.errors import DataError, first_line
from spunge.rows.sources import Corpus
from spunge.training.settings import Tuning
from spunge.weights.tokens import tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SORTING_WINDOW = 50
_SAME_DAY = (
    "{% macro strftime_now(format) %}{{ format | replace('%Y', '2025') | replace('%y', '25') | replace('%m', '04')"
    " | replace('%B', 'April') | replace('%b', 'Apr') | replace('%d', '10') | replace('%A', 'Thursday')"
    " | replace('%a', 'Thu') }}{% endmacro %}"
)
"""Before a chat template: those that tell the model today's date would make other tokens of the same rows tomorrow. The
day is the one that open-unlearning's published models were taught with."""


@dataclass(frozen=True)
class Encoded:
    """A row as tokens, of which those from `start` on count in the loss."""

    ids: array[int]
    start: int

    @property
    def counted(self) -> int:
        """The number of tokens that are predicted; nothing predicts the first."""
        return len(self.ids) - max(self.start, 1)


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows padded on the right to the longest."""

    ids: Tensor
    """[B, T]"""
    mask: Tensor
    """[B, T], 1 where there is a token."""
    counted: Tensor
    """[B, T], true at the tokens that count in the loss: neither a prompt's nor what nothing predicts."""
    labels: Tensor
    """[N], the tokens that count, one row behind another."""
    indices: list[int]
    """Where the rows stand in the list they were taken from."""
    rows: Sequence[Encoded]
    """That list, whole."""

    @property
    def lengths(self) -> list[int]:
        """How many tokens of each row count; together N."""
        return [self.rows[index].counted for index in self.indices]


def encode(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    long_texts: Literal["truncate", "chunk"] = "truncate",
    response: str = "response",
) -> list[Encoded]:
    """Turns rows into tokens.

    A `text` counts whole; one of a single token, which nothing predicts, is left out. Of a prompt and its response only
    the response counts, ended by the end-of-text token; the two are laid out by the tokenizer's chat template when it
    has one, and joined by a space otherwise.

    Args:
        corpus: The rows.
        tokenizer: The base model's.
        max_length: The most tokens of a row; a row's source may set fewer.
        long_texts: Whether the rest of a long text is dropped or becomes rows of its own.
        response: The column of the responses.

    Raises:
        DataError: There is no such column, or nothing to predict.
    """
    if "text" in corpus.rows.columns and response == "response" and corpus.rows["text"].null_count():
        # Sources of both kinds were put together: what has no text is a prompt and its response.
        has_text = corpus.rows["text"].is_not_null()
        parts = Corpus(corpus.rows.filter(has_text)), Corpus(corpus.rows.filter(~has_text).drop("text"))
        options: Any = {"max_length": max_length, "long_texts": long_texts}
        return [row for part in parts if len(part) for row in encode(part, tokenizer, **options)]
    limits = [min(row_limit or max_length, max_length) for row_limit in corpus.max_lengths]
    if "text" in corpus.rows.columns and response == "response":
        rows = []
        for ids, limit in zip(_tokenize(tokenizer, corpus.texts), limits, strict=True):
            stop = len(ids) if long_texts == "chunk" else min(limit, len(ids))
            pieces = (ids[at : min(at + limit, stop)] for at in range(0, stop, limit))
            rows += [Encoded(array("i", piece), 0) for piece in pieces if len(piece) > 1]
        if not rows:
            raise DataError("no text has two tokens or more: there is nothing to predict")
        return rows
    rows = [
        Encoded(row.ids[:limit], row.start)
        for row, limit in zip(_pairs(corpus, tokenizer, response), limits, strict=True)
    ]
    for number, (row, limit) in enumerate(zip(rows, limits, strict=True), 1):
        if row.counted < 1:
            raise DataError(
                f"row {number}: the prompt alone fills the {limit} tokens of max_length; raise it or remove the row"
            )
    return rows


def _pairs(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, response: str) -> list[Encoded]:
    for column in ("prompt", response):
        if column not in corpus.rows.columns:
            raise DataError(f"no column {column!r}; columns are {', '.join(corpus.rows.columns)}")
        if corpus.rows[column].null_count():
            row = int(corpus.rows[column].is_null().arg_true()[0]) + 1
            raise DataError(f"row {row} has no {column!r}; fill it in or remove the row")
    systems = corpus.rows["system"].to_list() if "system" in corpus.rows.columns else None
    return conversations(tokenizer, corpus.rows["prompt"].to_list(), corpus.rows[response].to_list(), systems=systems)


def conversations(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    responses: Sequence[str],
    *,
    systems: Sequence[str | None] | None = None,
    delimiter: str = " ",
    ended: bool = True,
) -> list[Encoded]:
    """Lays prompts and responses out as the model is spoken to: in its chat template, or else as plain text.

    Args:
        tokenizer: The model's.
        prompts: What the user says.
        responses: What the model answers; from there on tokens count.
        systems: What it is told before, where it is; without a chat template a paragraph before the prompt.
        delimiter: What stands between the two without a chat template.
        ended: Whether what ends an answer is part of it: the template's own ending, or the end-of-text token.
    """
    chat = bool(tokenizer.chat_template)
    told = systems or [None] * len(prompts)
    opened = openings(tokenizer, prompts, told)
    if chat:
        dialogues = [
            [*_asked(prompt, system), {"role": "assistant", "content": answer}]
            for prompt, system, answer in zip(prompts, told, responses, strict=True)
        ]
        wholes = [_rendered(tokenizer, turns, continue_final_message=not ended) for turns in dialogues]
    else:
        wholes = [f"{opening}{delimiter}{answer}" for opening, answer in zip(opened, responses, strict=True)]
    end: Any = tokenizer.eos_token_id
    rows = []
    for opening, ids in zip(
        _tokenize(tokenizer, opened, special=not chat), _tokenize(tokenizer, wholes, special=not chat), strict=True
    ):
        # A token that straddles prompt and response belongs to the response: the common prefix ends before it.
        start = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(opening, ids, strict=False)))
        if not chat and end is not None:
            ids = [*(ids[:-1] if ids[-1] == end else ids), *([end] if ended else [])]
        rows.append(Encoded(array("i", ids), start))
    return rows


def openings(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], systems: Sequence[str | None]) -> list[str]:
    """Returns what a model reads before it answers: prompts in its chat template, or else as plain text."""
    if tokenizer.chat_template:
        asked = [_asked(prompt, system) for prompt, system in zip(prompts, systems, strict=True)]
        return [_rendered(tokenizer, turns, add_generation_prompt=True) for turns in asked]
    return [f"{system}\n\n{prompt}" if system else prompt for system, prompt in zip(systems, prompts, strict=True)]


def _asked(prompt: str, system: str | None) -> list[dict[str, str]]:
    return [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": prompt}]


def _rendered(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], **options: Any) -> str:
    try:
        template = _SAME_DAY + tokenizer.get_chat_template()
        return str(tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False, **options))
    except (TemplateError, ValueError) as error:  # a role that it does not know, or several templates and no default
        raise DataError(f"the model's chat template cannot lay out a row: {first_line(error)}") from error


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, special: bool = True) -> Iterator[list[int]]:
    for some in cut(list(texts), 1000):
        if special:
            yield from tokenize(tokenizer, some)
        else:
            yield from tokenizer(some, add_special_tokens=False, verbose=False)["input_ids"]  # pyright: ignore[reportReturnType]


def collate(rows: Sequence[Encoded], indices: Sequence[int], *, pad: int, device: str) -> Batch:
    """Pads the rows with these indices into one batch."""
    chosen = [rows[index] for index in indices]
    width = max(len(row.ids) for row in chosen)
    ids = torch.full((len(chosen), width), pad)
    mask = torch.zeros_like(ids)
    counted = torch.zeros_like(ids, dtype=torch.bool)
    for position, row in enumerate(chosen):
        length = len(row.ids)
        ids[position, :length] = torch.tensor(row.ids)
        mask[position, :length] = 1
        counted[position, max(row.start, 1) : length] = True
    ids, mask, counted = ids.to(device), mask.to(device), counted.to(device)
    return Batch(ids, mask, counted, ids[counted], list(indices), rows)


Step = tuple[list[list[int]], ...]
"""For every term, the batches of one step, each a list of row indices."""


def plan(terms: Sequence[Sequence[Encoded]], settings: Tuning, generator: torch.Generator) -> list[Step]:
    """Draws every batch of the run beforehand, so that a resumed run knows what comes next."""

    def epoch(rows: Sequence[Encoded]) -> list[list[int]]:
        size = settings.batch_size
        order = torch.randperm(len(rows), generator=generator).tolist()
        if not settings.length_sorted:
            return cut(order, size)
        alike = [
            index
            for window in cut(order, size * _SORTING_WINDOW)
            for index in sorted(window, key=lambda index: len(rows[index].ids))
        ]
        batches = cut(alike, size)
        return [batches[number] for number in torch.randperm(len(batches), generator=generator).tolist()]

    first, *others = terms
    steps = [step for _ in range(settings.epochs) for step in cut(epoch(first), settings.accumulation)]
    steps = steps[: settings.max_steps]
    columns: list[list[list[list[int]]]] = [steps]
    for rows in others:
        supply: list[list[int]] = []
        wanted = sum(len(step) for step in steps)
        while len(supply) < wanted:
            supply += epoch(rows)
        batches = iter(supply)
        columns.append([[next(batches) for _ in step] for step in steps])
    return list(zip(*columns, strict=True))


def cut(values: list[Any], size: int) -> list[list[Any]]:
    """Cuts a list into pieces of this size; the last may be shorter."""
    return [values[at : at + size] for at in range(0, len(values), size)]

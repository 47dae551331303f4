"""Rows to padded token batches, exactly as the reference makes them: cut on the right, padded on the left."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from spunge.errors import DataError
from spunge.rows.sources import Corpus
from spunge.weights.tokens import tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Cut(NamedTuple):
    """Hidden states of a batch between two layers of the frozen model."""

    batch: str
    """The batch's digest."""
    tokens: int
    """Of the batch, pads included."""
    layers: int
    """How many layers were run."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows padded on the left to the longest of them."""

    ids: Tensor
    """[batch, tokens]"""
    mask: Tensor
    """[batch, tokens], 0 on pads."""
    counted: Tensor
    """[batch, tokens], True where the losses look."""
    digest: str
    """The sha256 of what the model sees: token ids and padded shape."""

    def cut(self, layers: int) -> Cut:
        """Names its hidden states after so many layers."""
        return Cut(self.digest, self.ids.numel(), layers)

    def to(self, device: torch.device | str) -> Batch:
        """Returns the same batch on another device."""
        return Batch(self.ids.to(device), self.mask.to(device), self.counted.to(device), self.digest)


def orders(rows: int, epochs: int, generator: torch.Generator | None) -> Iterator[list[int]]:
    """Yields the order of the rows in every epoch: the file's, or a new one drawn each time."""
    for _ in range(epochs):
        yield list(range(rows)) if generator is None else torch.randperm(rows, generator=generator).tolist()


def tokenise(tokenizer: PreTrainedTokenizerBase, corpus: Corpus, limit: int, what: str) -> list[list[int]]:
    """Returns the token ids of every row, cut on the right to its own limit or to `limit`.

    Raises:
        DataError: A row has no tokens.
    """
    tokenizer.truncation_side = "right"
    limits = [row_limit or limit for row_limit in corpus.max_lengths]
    rows: list[list[int]] = [[]] * len(corpus)
    texts = corpus.texts
    # By limit, as a tokenizer cuts a whole call at one length.
    for length in sorted(set(limits)):
        indices = [index for index, row_limit in enumerate(limits) if row_limit == length]
        encoded = tokenize(tokenizer, [texts[index] for index in indices], max_length=length)
        for index, ids in zip(indices, encoded, strict=True):
            rows[index] = ids
    for number, ids in enumerate(rows, 1):
        if not ids:
            raise DataError(f"row {number} of the {what} set has no tokens; remove it")
    return rows


def pad(rows: Sequence[Sequence[int]], pad_id: int, bos_id: int | None, loss_mask: str) -> Batch:
    """Pads token rows on the left to the longest of them, and marks the positions that the losses average over."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros(len(rows), width, dtype=torch.int64)
    for index, row in enumerate(rows):
        ids[index, width - len(row) :] = torch.tensor(row)
        mask[index, width - len(row) :] = 1
    counted = torch.ones_like(mask, dtype=torch.bool) if loss_mask == "all" else mask.bool()
    if loss_mask == "non_pad_non_bos" and bos_id is not None:
        first = mask.cumsum(1).mul(mask) == 1
        counted = counted & ~(first & (ids == bos_id))
    content = torch.stack([ids, mask]).numpy()
    digest = hashlib.sha256(str(content.shape).encode() + content.tobytes()).hexdigest()
    return Batch(ids, mask, counted, digest)

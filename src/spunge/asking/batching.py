"""How many questions go through a model at once, and the answers so far of an attempt that may be killed."""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spunge.interfaces import Progress, silent

READ_AT_ONCE = 16
"""Rows that go through a model at once where nobody says how many."""
WRITTEN_AT_ONCE = 128
"""Texts that are written side by side then, at most: a product of so many rows runs at nine tenths of the best."""
TOKENS_AT_ONCE = 8192
"""Tokens of a batch, unless a single row has more: a larger one is no faster, and takes memory for nothing."""
LOGITS_AT_ONCE = 2**24
"""Numbers of logits that lie in memory at once, unless a single position has more: 64 MiB in float32."""


@dataclass(frozen=True)
class Batching:
    """How to put many questions to a model; never changes an answer."""

    size: int | None
    """How many rows go through the model at once; None: as many as suit, in writing by the memory there is."""
    progress: Progress = silent
    """Told after every batch."""
    scratch: Path | None = None
    """Where finished batches of this model are kept, so that a killed attempt goes on where it was."""

    @property
    def rows(self) -> int:
        """How many rows are read at once."""
        return self.size or READ_AT_ONCE


class AnswerLog:
    """The answers of finished batches, as JSON lines in a scratch directory, for whoever is asked the same again.

    The next batch gets the next line, so batches must come in the same order; their size and all questions are in the
    file's name. Without a scratch directory nothing is kept.
    """

    def __init__(self, batching: Batching, what: str, questions: Sequence[Any]) -> None:
        self._answers: deque[Any] = deque()
        self._file: Path | None = None
        if batching.scratch is None:
            return
        # The size too: another one cuts other batches, and the lines would belong to other questions.
        name = hashlib.sha256(f"{what}:{batching.size}".encode())
        for question in questions:
            name.update(repr(question).encode())
        batching.scratch.mkdir(parents=True, exist_ok=True)
        self._file = batching.scratch / f"{name.hexdigest()[:16]}.jsonl"
        if self._file.exists():
            whole = self._file.read_bytes().rpartition(b"\n")[0].splitlines()  # a kill may have torn the last line
            self._answers.extend(json.loads(line) for line in whole)
            os.truncate(self._file, sum(len(line) + 1 for line in whole))

    def next(self, ask: Callable[[], list[Any]]) -> list[Any]:
        """Returns the logged answers of the next batch, or else asks, and logs what comes."""
        if self._answers:
            return self._answers.popleft()
        answers = ask()
        self.note(answers)
        return answers

    def earlier(self) -> list[Any]:
        """Returns all logged answers, a batch each: for whom they say themselves which questions they answer."""
        answers = [*self._answers]
        self._answers.clear()
        return answers

    def note(self, answers: Any) -> None:
        """Logs the answers of a batch."""
        # Written whole and in one go, so that a kill tears a line at most; whoever reads drops that.
        if self._file is not None:
            with self._file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(answers) + "\n")


def chunks(rows: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Yields rows, `size` at a time."""
    return (rows[start : start + size] for start in range(0, len(rows), size))


def chunks_by_length(rows: Sequence[int], size: int, lengths: Mapping[int, int] | Sequence[int]) -> Iterator[list[int]]:
    """Yields rows, the longest first, `size` at a time and fewer of such as would have more than `TOKENS_AT_ONCE`."""
    left = sorted(rows, key=lambda row: -lengths[row])
    while left:
        count = max(1, min(size, TOKENS_AT_ONCE // max(lengths[left[0]], 1)))
        yield left[:count]
        left = left[count:]

"""Rows that stand in two sets, and questions that stand nearly word for word among the texts that are forgotten."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from spunge.rows.sources import Corpus

_RUN = 3
"""Words of a run that is looked up; runs of a text overlap."""
_LONG = 8
"""A question of fewer words must stand in a text as it is: a word or two of difference would be another question."""
_NEAR = 0.8
"""The share of a question's runs that one text must hold."""


def shared_rows(left: Corpus, right: Corpus) -> int:
    """Returns how many rows of the one have a text that stands in the other too, blanks around it apart."""
    texts = {text.strip() for text in right.texts}
    return sum(text.strip() in texts for text in left.texts)


def near_duplicates(questions: Sequence[str], texts: Sequence[str]) -> int:
    """Returns how many questions stand in a text, word for word or with a word or so of difference in between.

    Case and punctuation don't count. A question of one or two words does only where it is the whole text. How it begins
    and ends must be there: what differs in the last word alone is another question about the same.
    """
    words = [_words(question) for question in questions]
    by_words: dict[tuple[str, ...], list[int]] = defaultdict(list)
    by_run: dict[int, dict[tuple[str, ...], list[int]]] = defaultdict(lambda: defaultdict(list))
    runs: dict[int, list[tuple[str, ...]]] = {}
    for index, question in enumerate(words):
        by_words[question].append(index)
        if len(question) >= _RUN:
            size = _RUN if len(question) >= _LONG else len(question)
            runs[index] = _runs(question, size)
            for run in set(runs[index]):
                by_run[size][run].append(index)
    leaked: set[int] = set()
    for text in map(_words, texts):
        if text:
            leaked.update(by_words.get(text, ()))
        held = {size: set(_runs(text, size)) for size in by_run}
        counts = Counter(
            index for size, present in held.items() for run in present for index in by_run[size].get(run, ())
        )
        for index, count in counts.items():
            ends = {runs[index][0], runs[index][-1]}
            if count >= _NEAR * len(set(runs[index])) and ends <= held[len(runs[index][0])]:
                leaked.add(index)
    return len(leaked)


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", text.lower()))


def _runs(words: tuple[str, ...], size: int) -> list[tuple[str, ...]]:
    return [words[start : start + size] for start in range(len(words) - size + 1)]

"""Which texts damage is measured on: near what must go, far from it, and none that a table shows."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from math import fsum, log, sqrt

import polars as pl

from spunge.evaluators.perplexity import Perplexity
from spunge.recipe.schema import Experiment
from spunge.rows.items import suite_items
from spunge.rows.sources import Corpus, load_corpus

MOST_RANKED = 5_000
"""More rows than this are not looked at, but so many of them: a few hundred tokens are read in the end."""
_BEGINNING = 2_000
"""Characters of a row by which it is ranked."""


@dataclass(frozen=True)
class Texts:
    """What damage is measured on, and what a reader is told that it is."""

    near: Corpus | None
    far: Corpus | None
    told: str
    """What the near texts are."""


def damage_texts(experiment: Experiment, forget: Corpus, retain: Corpus | None) -> Texts | None:
    """Returns the texts that an experiment measures damage on, None where it measures none.

    Texts whose perplexity a suite reports are left out, as far as there are others: λ is not chosen on what is shown.

    Raises:
        SpungeError: A source is missing.
    """
    if (damage := experiment.damage) is None:
        return None
    shown = Corpus(pl.DataFrame({"text": _reported(experiment)}, schema={"text": pl.String}))
    if damage.near is not None:
        near, told = load_corpus(damage.near), "the texts named in the recipe"
    elif retain is not None:
        near, told = nearest(retain, forget), "the retain rows most like the forget set"
    else:
        near, told = None, ""
    if damage.suite is not None:
        told = f"“{damage.suite}”"
    far = None if damage.far is None else _without(load_corpus(damage.far), shown)
    return Texts(near and _without(near, shown), far, told)


def nearest(rows: Corpus, others: Corpus) -> Corpus:
    """Returns the half of some rows that has most words in common with others, in order; rare words count for more.

    Of each row the length of its shared words beside all its words', each weighed by its inverse document frequency:
    benign text about the same groups or neighbouring subjects, without a model to ask.
    """
    rows = _spread(rows)
    words = [_words(text) for text in rows.texts]
    theirs = frozenset().union(*(_words(text) for text in _spread(others).texts))
    counts = Counter(word for each in words for word in each)
    weight = {word: log(len(words) / count) ** 2 for word, count in counts.items()}

    def likeness(row: frozenset[str]) -> float:
        # Exactly rounded: a set's order differs from process to process, and like rows would change places.
        whole = fsum(weight[word] for word in row)
        return sqrt(fsum(weight[word] for word in row & theirs) / whole) if whole else 0.0

    ranked = sorted(range(len(words)), key=lambda index: (-likeness(words[index]), index))
    return rows.select(sorted(ranked[: (len(ranked) + 1) // 2]))


def _spread(rows: Corpus) -> Corpus:
    """At most so many rows, evenly through the whole, as rows often lie sorted by their source."""
    return rows.select(range(0, len(rows), -(-len(rows) // MOST_RANKED))) if len(rows) > MOST_RANKED else rows


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text[:_BEGINNING].lower()))


def _reported(experiment: Experiment) -> list[str]:
    """The texts whose own likelihood is among the figures."""
    suites = [suite for suite in experiment.evaluate if isinstance(suite, Perplexity)]
    return [str(item.row["text"]) for suite in suites for item in suite_items(suite, "text")]


def _without(rows: Corpus, shown: Corpus) -> Corpus:
    left = rows.without(shown)
    return left if len(left) else rows

"""The rungs of a search: few rows and few items first, and only the best go on to more."""

from __future__ import annotations

from dataclasses import dataclass

SHARE = 3
"""Of so many trials one goes on; each rung takes as many times the rows."""
_LEAST_ROWS = 48
_MOST_ROWS = 1500
"""Rows that the highest rung trains on, at most: beyond that a trial would take an hour for little."""
_ITEMS = (24, 48, 96)
"""That the highest three rungs ask, where there are so many."""
_TOKENS = (256, 384, 512)
"""That they measure damage on."""
_STEPS = 100
"""About as many steps of four rows the highest rung takes at least: short sets are gone through more than once."""
_MOST_EPOCHS = 8


@dataclass(frozen=True)
class Rung:
    """How much of everything a trial gets."""

    number: int
    rows: int
    """Forget rows that are trained on, over all subsets."""
    epochs: int
    items: int
    """Items that are asked."""
    tokens: int
    """Tokens that damage is measured on."""
    wide: bool
    """Whether it is read at all points, or at the few of the first rung."""


def ladder(rows: int, asked: int = _ITEMS[-1], tokens: int = _TOKENS[-1]) -> list[Rung]:
    """Returns the rungs for a forget set of so many rows, the cheapest first.

    Where the whole set is small, fewer rungs are of any use: two of the same rows would differ in items alone.

    Args:
        rows: Of the forget set.
        asked: Rows that there are to ask while it is tuned.
        tokens: That there are to measure damage on meanwhile.
    """
    whole = min(rows, _MOST_ROWS)
    sizes = [whole]
    while sizes[0] > SHARE * _LEAST_ROWS and len(sizes) < 3:
        sizes.insert(0, max(_LEAST_ROWS, round(sizes[0] / SHARE)))
    if len(sizes) == 1 and whole > _LEAST_ROWS:
        sizes.insert(0, max(_LEAST_ROWS, whole // 2))
    epochs = max(1, min(_MOST_EPOCHS, round(4 * _STEPS / whole)))
    top = len(sizes) - 1
    return [
        Rung(
            number, size, max(1, epochs if number == top else epochs // 2), min(_ITEMS[number + 2 - top], asked),
            min(_TOKENS[number + 2 - top], tokens), number > 0,
        )
        for number, size in enumerate(sizes)
    ]  # fmt: skip


def promoted(trials: int, rung: int) -> int:
    """Returns how many of so many trials reach a rung."""
    return -(-trials // SHARE**rung)

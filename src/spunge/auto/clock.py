"""How long a search may take and how long it still will: by the minutes that it was given, or by what trials took."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from time import monotonic
from typing import Any

from spunge.auto.rungs import Rung
from spunge.auto.trials import Arm, points

_UNTIL = (0.5, 0.8, 1.0)
"""By which share of the time for trials each rung has ended."""
_ITEM = 8
"""How many tokens of damage one item takes as long as, about: measured on SmolLM2-135M, sentences of 30 tokens."""


@dataclass
class Clock:
    """Knows what trials took, and says whether there is time for another."""

    minutes: float | None
    rungs: list[Rung]
    closing: Callable[[int], int] = lambda reached: 0
    """How many rungs were reached → what choosing and judging will read, in tokens (`reads`)."""
    earlier: float = 0.0
    """Seconds that earlier sittings of the same search took."""
    _began: float = field(default_factory=lambda: monotonic())
    _took: dict[tuple[Arm, int], list[tuple[float, float]]] = field(default_factory=dict)

    @property
    def spent(self) -> float:
        """Seconds so far."""
        return self.earlier + monotonic() - self._began

    @property
    def whole(self) -> float | None:
        """Seconds in all; None where trials are counted."""
        return None if self.minutes is None else 60 * self.minutes

    def note(self, arm: Arm, rung: Rung, result: Mapping[str, Any]) -> None:
        """Takes note of what one trial took; of one that failed early nothing can be learnt."""
        if result["trained"] is not None:
            took = (result["trained"], result["seconds"] - result["trained"])
            self._took.setdefault((arm, rung.number), []).append(took)

    def expected(self, arm: Arm, rung: Rung) -> float | None:
        """Returns what a trial will take: as long as those before it, or as others by what they train and read."""
        if took := self._took.get((arm, rung.number)):
            return fmean(map(sum, took))
        known = sorted(self._took, key=lambda one: (one[0] == arm, one[1]))
        if not known:
            return None
        other_arm, number = known[-1]
        other, took = self.rungs[number], self._took[known[-1]]
        training = rung.rows * rung.epochs / (other.rows * other.epochs)
        asked = _asked(arm, rung) / _asked(other_arm, other)
        return training * fmean(one for one, _ in took) + asked * fmean(two for _, two in took)

    def end(self, reached: int) -> float:
        """Returns the seconds that choosing and judging will take, going by what trials took to read.

        Args:
            reached: How many rungs there is something to choose from at. 0 while nobody knows.
        """
        read = sum(two for took in self._took.values() for _, two in took)
        tokens = sum(len(took) * _asked(arm, self.rungs[number]) for (arm, number), took in self._took.items())
        return self.closing(reached) * read / tokens if tokens else 0.0

    def has_time(self, arm: Arm, rung: Rung) -> bool:
        """Whether a trial would end before its rung has to."""
        if self.whole is None:
            return True
        last = _UNTIL[rung.number + len(_UNTIL) - len(self.rungs)]
        return self.spent + (self.expected(arm, rung) or 0.0) <= last * (self.whole - self.end(rung.number + 1))

    def holds(self, arms: Sequence[Arm], rung: Rung) -> bool:
        """Whether a trial of each arm at a rung would leave time to choose and to judge."""
        if self.whole is None:
            return True
        return self.spent + sum(self.expected(arm, rung) or 0.0 for arm in arms) <= self.whole - self.end(
            rung.number + 1
        )

    def left(self, waiting: Mapping[tuple[Arm, int], int]) -> float | None:
        """Returns the seconds that are left; None before anything is known.

        Args:
            waiting: How many trials are to come of every arm and rung, where trials are counted.
        """
        if self.whole is not None:
            return max(0.0, self.whole - self.spent)
        guesses = [(self.expected(arm, self.rungs[number]), count) for (arm, number), count in waiting.items() if count]
        trials = sum((guess or 0.0) * count for guess, count in guesses)
        if any(guess is None for guess, _ in guesses):
            return None
        return trials + self.end(len(self.rungs))


def reads(tokens: int, items: int) -> int:
    """Returns what a reading takes, in tokens: of the damage, and of items that are asked."""
    return tokens + _ITEM * items


def _asked(arm: Arm, rung: Rung) -> int:
    return len(points(arm, wide=rung.wide)) * reads(rung.tokens, rung.items)

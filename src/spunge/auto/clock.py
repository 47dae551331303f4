"""How long a search may take and how long it still will: by the minutes that it was given, or by what trials took."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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


@dataclass(frozen=True)
class Closing:
    """What choosing and judging will do."""

    tokens: int = 0
    """That are read (`reads`)."""
    attacks: int = 0
    """How many variants are attacked, where there is an attack."""
    items: int = 0
    """That each attack asks."""


@dataclass(frozen=True)
class _Took:
    """The seconds of one trial."""

    method: str
    trained: float
    read: float
    attacked: float

    @property
    def whole(self) -> float:
        return self.trained + self.read + self.attacked


@dataclass
class Clock:
    """Knows what trials took, and says whether there is time for another."""

    minutes: float | None
    rungs: list[Rung]
    closing: Callable[[int], Closing] = lambda reached: Closing()
    """How many rungs were reached → what choosing and judging will do."""
    asks: int = 0
    """How often an attack asks its items; 0 where there is no attack."""
    earlier: float = 0.0
    """Seconds that earlier sittings of the same search took."""
    _began: float = field(default_factory=lambda: monotonic())
    _took: dict[tuple[Arm, int], list[_Took]] = field(default_factory=dict)

    @property
    def spent(self) -> float:
        """Seconds so far."""
        return self.earlier + monotonic() - self._began

    @property
    def whole(self) -> float | None:
        """Seconds in all; None where trials are counted."""
        return None if self.minutes is None else 60 * self.minutes

    def note(self, arm: Arm, rung: Rung, method: str, result: Mapping[str, Any]) -> None:
        """Takes note of what one trial took; of one that failed early nothing can be learnt."""
        if result["trained"] is not None:
            attacked = result.get("attacked", 0.0)  # searches that began before it was kept have none
            took = _Took(method, result["trained"], result["seconds"] - result["trained"] - attacked, attacked)
            self._took.setdefault((arm, rung.number), []).append(took)

    def expected(self, arm: Arm, rung: Rung, method: str | None = None) -> float | None:
        """Returns what a trial will take: as long as those before it, or as others by what they train and read.

        Args:
            arm: The trial's.
            rung: The trial's.
            method: Its method, where that is known: one may take ten times as long as another.
        """
        of_method = {place: [one for one in took if one.method == method] for place, took in self._took.items()}
        known = {place: took for place, took in of_method.items() if took} or self._took
        if took := known.get((arm, rung.number)):
            return fmean(one.whole for one in took)
        if not known:
            return None
        other_arm, number = place = max(known, key=lambda one: (one[0] == arm, one[1]))
        other, took = self.rungs[number], known[place]
        training = rung.rows * rung.epochs / (other.rows * other.epochs)
        read = self._read(arm, rung) / self._read(other_arm, other)
        return (
            training * fmean(one.trained for one in took) + read * fmean(one.read for one in took)
            + self._points(arm, rung) * self._attack(rung.items)
        )  # fmt: skip

    def end(self, reached: int) -> float:
        """Returns the seconds that choosing and judging will take, going by what trials took to read.

        Args:
            reached: How many rungs there is something to choose from at. 0 while nobody knows.
        """
        closing = self.closing(reached)
        return closing.tokens * self._rate + closing.attacks * self._attack(closing.items)

    @property
    def _rate(self) -> float:
        """Seconds that one token takes to read; 0 while nobody knows."""
        read = sum(one.read for took in self._took.values() for one in took)
        tokens = sum(len(took) * self._read(arm, self.rungs[number]) for (arm, number), took in self._took.items())
        return read / tokens if tokens else 0.0

    def _attack(self, items: int) -> float:
        """Returns the seconds that one attack takes which asks so many items; what else it does is always the same."""
        made = [
            (one.attacked, self._points(arm, self.rungs[number]), self.rungs[number].items)
            for (arm, number), took in self._took.items() for one in took
        ]  # fmt: skip
        attacks = sum(count for _, count, _ in made)
        if not self.asks or not attacks:
            return 0.0
        seconds = sum(seconds for seconds, _, _ in made) / attacks
        asked = sum(count * items for _, count, items in made) / attacks
        return max(0.0, seconds + self.asks * (items - asked) * reads(0, 1) * self._rate)

    def _points(self, arm: Arm, rung: Rung) -> int:
        return len(points(arm, wide=rung.wide, attacked=self.asks > 0))

    def _read(self, arm: Arm, rung: Rung) -> int:
        """What the readings of a trial take, in tokens."""
        return self._points(arm, rung) * reads(rung.tokens, rung.items)

    def has_time(self, arm: Arm, rung: Rung, method: str | None = None) -> bool:
        """Whether a trial would end before its rung has to."""
        if self.whole is None:
            return True
        last = _UNTIL[rung.number + len(_UNTIL) - len(self.rungs)]
        return self.spent + (self.expected(arm, rung, method) or 0.0) <= last * (self.whole - self.end(rung.number + 1))

    def holds(self, methods: Mapping[Arm, str], rung: Rung) -> bool:
        """Whether a trial of each arm at a rung, of these methods, would leave time to choose and to judge."""
        if self.whole is None:
            return True
        trials = sum(self.expected(arm, rung, method) or 0.0 for arm, method in methods.items())
        return self.spent + trials <= self.whole - self.end(rung.number + 1)

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

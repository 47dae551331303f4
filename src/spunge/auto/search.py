"""The search: rung by rung, joint unlearning and the merged model in turn, each with as many trials as the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import le
from pathlib import Path
from time import sleep
from typing import Any

from spunge.auto.clock import Clock
from spunge.auto.rungs import Rung, promoted
from spunge.auto.study import BUSY, LOST, Setting, Study, claim
from spunge.auto.trials import ARMS, Arm, Bench, Reading
from spunge.errors import RecipeError
from spunge.files import format_duration, locked

MOST_TRIALS = 200
"""Of an arm, however much time there is."""


@dataclass(frozen=True)
class Event:
    """One trial has ended at one rung."""

    arm: Arm
    rung: Rung
    setting: Setting
    result: Mapping[str, Any]
    best: Reading | None
    """The best within the budget so far, of both arms, at the highest rung that was reached."""
    done: int
    whole: int | None
    """Trials of all rungs; None where the time decides."""
    left: float | None
    """Seconds; None while nobody knows."""


@dataclass
class Search:
    """The studies of both arms, and what was found so far."""

    bench: Bench
    studies: Mapping[Arm, Study]
    rungs: list[Rung]
    clock: Clock
    directory: Path
    trials: int | None
    """Of each arm; None: as many as there is time for."""
    listener: Callable[[Event], object] = field(default=lambda event: None)

    def run(self) -> None:
        """Makes all trials, one rung after the other; whatever was made before is not made again.

        Raises:
            RecipeError: There is no time for two trials.
        """
        for arm, study in self.studies.items():
            settings = study.settings()
            for rung in self.rungs:
                for number, result in study.results(rung.number).items():
                    self.clock.note(arm, rung, settings[number].method, result)
        self._first_rung()
        for rung in self.rungs[1:]:
            self._promote(rung)

    def _first_rung(self) -> None:
        rung = self.rungs[0]
        open_arms: list[Arm] = list(ARMS)
        late = False
        while open_arms:
            for arm in tuple(open_arms):
                study = self.studies[arm]
                # The arms end together: what one is given the other is, too, and no more once one has no time.
                if study.results(0) and not self._behind(arm, rung):
                    late = late or not self.clock.has_time(arm, rung)
                    if late:
                        open_arms.remove(arm)
                        continue
                setting = study.take(self.trials or MOST_TRIALS)
                if setting is None:
                    open_arms.remove(arm)
                    continue
                self._refuse_where_two_take_too_long(rung)
                result = self._made(arm, setting, rung)
                readings = readings_of(result)
                study.tell(setting, {one.name: self._values(one) for one in readings})
        while any(study.waiting() for study in self.studies.values()):  # another process is at its last ones
            sleep(0.5)
        left = any(len(study.results(0)) < len(study.settings()) for study in self.studies.values())
        if left and self.trials is not None:
            self._first_rung()  # it died over one of them

    def _behind(self, arm: Arm, rung: Rung) -> bool:
        """Whether an arm has fewer trials at a rung than the other."""
        counts = {one: len(self.studies[one].results(rung.number)) for one in ARMS}
        return counts[arm] < max(counts.values())

    def _values(self, reading: Reading) -> list[float]:
        damage = min(LOST if reading.damage is None else reading.damage, LOST)
        budget = reading.share * self.bench.budget
        if reading.met and damage <= budget:
            damage = budget  # met within 5 %: none is better for having been measured a little lower
        back = [] if reading.back is None else [reading.back]
        return [reading.gone, damage, *back]

    def _refuse_where_two_take_too_long(self, rung: Rung) -> None:
        if self.clock.whole is None:
            return
        made = [len(self.studies[arm].results(0)) for arm in ARMS]
        longest = max((self.clock.expected(arm, rung) or 0.0) for arm in ARMS)
        if sum(made) == 1 and self.clock.spent + longest > self.clock.whole:
            needed = 4 * (self.clock.spent + longest) / 60
            raise RecipeError(
                f"--minutes {self.clock.minutes:g}: no time for two trials, of which the first took "
                f"{format_duration(longest)}: give --minutes {max(1, round(needed))} or more; the same command goes on "
                "from there"
            )

    def _promote(self, rung: Rung) -> None:
        below = rung.number - 1
        ranked = {arm: self._ranked(arm, below) for arm in ARMS}
        fewest = min(len(self.studies[arm].results(0)) for arm in ARMS)
        count = promoted(fewest, rung.number)
        begun = any(self.studies[arm].results(rung.number) for arm in ARMS)
        settings = {arm: self.studies[arm].settings() for arm in ARMS}
        first: dict[Arm, str] = {arm: settings[arm][ranked[arm][0]].method for arm in ARMS if ranked[arm]}
        if not begun and not self.clock.holds(first, rung):
            return  # what was found below is chosen from: that is sooner than late
        late = False
        for place in range(count):
            for arm in ARMS:
                if place >= len(ranked[arm]):
                    continue
                setting = settings[arm][ranked[arm][place]]
                if setting.number in self.studies[arm].results(rung.number):
                    continue
                if place and not self._behind(arm, rung):
                    late = late or not self.clock.has_time(arm, rung, setting.method)
                    if late:
                        continue
                self._promoted(arm, setting, rung)
        for arm in ARMS:  # where a search goes on, one arm may have sent up a new trial and the other none
            for number in ranked[arm]:
                if self._behind(arm, rung) and number not in self.studies[arm].results(rung.number):
                    self._promoted(arm, settings[arm][number], rung)

    def _promoted(self, arm: Arm, setting: Setting, rung: Rung) -> None:
        """Makes a trial at a higher rung; where another process is at it, waits, and makes it only if that one died."""
        with locked(claim(self.directory, arm, setting.number, rung.number), BUSY, wait=True):
            if setting.number not in self.studies[arm].results(rung.number):
                self._made(arm, setting, rung)

    def _ranked(self, arm: Arm, rung: int) -> list[int]:
        """The trials of a rung, the one of which most lasts within the budget first; what came to nothing stays out."""
        scores = {}
        for number, result in self.studies[arm].results(rung).items():
            within = [one.lasting for one in readings_of(result) if one.share == 1.0 and one.met]
            if within:
                scores[number] = max(within)
        return sorted(scores, key=lambda number: (-scores[number], number))

    def _made(self, arm: Arm, setting: Setting, rung: Rung) -> dict[str, Any]:
        study = self.studies[arm]
        result = study.results(rung.number).get(setting.number)  # killed after it was made and before it was told
        if result is None:
            result = self.bench.run(arm, setting, rung)
            study.note(setting.number, rung.number, result)
            self.clock.note(arm, rung, setting.method, result)
        self.listener(self._event(arm, rung, setting, result))
        return result

    def _event(self, arm: Arm, rung: Rung, setting: Setting, result: Mapping[str, Any]) -> Event:
        done: dict[tuple[Arm, int], int] = {
            (one, each.number): len(self.studies[one].results(each.number)) for one in ARMS for each in self.rungs
        }
        waiting: dict[tuple[Arm, int], int] = {}
        if self.trials is not None:
            waiting = {
                (one, number): max(0, promoted(self.trials, number) - count) for (one, number), count in done.items()
            }
        whole = None if self.trials is None else sum(waiting.values()) + sum(done.values())
        top = self.at_top()
        return Event(
            arm, rung, setting, result, top[0] if top else None, sum(done.values()), whole, self.clock.left(waiting)
        )

    def readings(self, rung: int) -> list[Reading]:
        """Returns every reading of a rung."""
        return [
            one for arm in ARMS for result in self.studies[arm].results(rung).values() for one in readings_of(result)
        ]

    def at_top(self, arm: Arm | None = None) -> list[Reading]:
        """Returns the readings within the budget at the highest rung that was reached, the best first."""
        return next((found for rung in reversed(self.rungs) if (found := self.best(rung.number, arm))), [])

    def best(self, rung: int, arm: Arm | None = None) -> list[Reading]:
        """Returns the readings within the budget at a rung, the best first."""
        within = [
            one for one in self.readings(rung) if one.met and one.share == 1.0 and (arm is None or one.arm == arm)
        ]
        return sorted(within, key=lambda one: (-one.lasting, one.arm, one.number, one.merge))


def readings_of(result: Mapping[str, Any]) -> list[Reading]:
    """Reads what a trial came to."""
    return [Reading(**one) for one in result["readings"]]


def front(readings: list[Reading]) -> list[Reading]:
    """Returns the readings that none beats in all objectives, the least damage first."""
    known = [one for one in readings if one.damage is not None and one.gone > 0]
    kept: list[Reading] = []
    for one in sorted(known, key=lambda one: (*one.costs, one.number)):  # whoever beats one comes before it
        if not any(all(map(le, other.costs, one.costs)) for other in kept):
            kept.append(one)
    return kept

"""The search around its trials: rungs, who goes on, the clock, the front; with a bench that only computes."""

from __future__ import annotations

import json
import multiprocessing
import os
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spunge.auto import clock
from spunge.auto.asking import Asking
from spunge.auto.clock import Clock, Closing
from spunge.auto.inspection import inspect
from spunge.auto.judging import time_spent
from spunge.auto.parts import divide
from spunge.auto.rungs import Rung, ladder, promoted
from spunge.auto.search import Event, Search, front
from spunge.auto.session import attack_asks
from spunge.auto.spaces import Dimension, Space
from spunge.auto.study import Setting, Study
from spunge.auto.trials import ARMS, Arm, Bench, Reading, name_of, points
from spunge.errors import RecipeError
from spunge.evaluators.attacks import Attack, FewShot, SiblingMerge
from spunge.rows.sources import Source
from spunge.splitters import ByColumn
from spunge.weights.language_model import LanguageModel

if TYPE_CHECKING:
    from spunge.run.executors import Executor
    from spunge.run.variant import Variant

SPACES = [Space("method", [Dimension("rate", 1e-4, 1e-1, log=True, first=1e-3)], {})]
BUDGET = 0.03


class Computed:
    """A bench whose trials are a formula; it ends its process at the trial that it is told to."""

    against: object = None
    budget = BUDGET

    def __init__(self, dies_at: int | None = None, seconds: float = 1.0) -> None:
        self.made: list[tuple[Arm, int, int]] = []
        self._dies_at, self._seconds = dies_at, seconds

    def run(self, arm: Arm, setting: Setting, rung: Rung) -> dict[str, Any]:
        self.made.append((arm, setting.number, rung.number))
        if len(self.made) == self._dies_at:
            os._exit(9)
        height = 1 - abs(setting.fields["rate"] - 0.01) * 9
        readings = [
            Reading(arm, setting.number, rung.number, merge, share, 1.0, BUDGET * share * 0.97, True,
                    height * share * (1 + rung.number) * (0.9 if merge == "ties 0.2" else 1.0))
            for merge, share in points(arm, wide=rung.wide)
        ]  # fmt: skip
        return {"readings": [asdict(one) for one in readings], "seconds": self._seconds, "trained": 0.5, "failed": None}


def searched(directory: Path, trials: int | None, bench: Computed, minutes: float | None = None) -> Search:
    rungs = ladder(1000)
    studies: dict[Arm, Study] = {
        arm: Study(
            directory, arm, SPACES, [name_of(*point) for point in points(arm, wide=False)], 0,
            objectives=2 if bench.against is None else 3,
        )
        for arm in ARMS
    }  # fmt: skip
    earlier = sum(
        one["seconds"] for study in studies.values() for rung in rungs for one in study.results(rung.number).values()
    )
    search = Search(cast("Bench", bench), studies, rungs, Clock(minutes, rungs, earlier=earlier), directory, trials)
    search.run()
    return search


def test_killed_twice_the_front_is_the_same(tmp_path: Path):
    whole = searched(tmp_path / "whole", 9, Computed())
    killed = tmp_path / "killed"
    for at in (5, 7):
        process = multiprocessing.get_context("fork").Process(target=searched, args=(killed, 9, Computed(at)))
        process.start()
        process.join()
        assert process.exitcode == 9
    again = Computed()
    search = searched(killed, 9, again)
    for rung in whole.rungs:
        assert search.readings(rung.number) == whole.readings(rung.number)
    assert front(search.readings(2)) == front(whole.readings(2))
    assert len(again.made) < 9 + 9  # what was made is not made again


def test_joint_has_as_many_trials_as_the_merged_model_at_every_rung(tmp_path: Path):
    bench = Computed()
    searched(tmp_path, 9, bench)
    for rung, count in enumerate((9, 3, 1)):
        assert [sum(made[0] == arm and made[2] == rung for made in bench.made) for arm in ARMS] == [count, count]


def test_who_goes_on_forgot_most_within_the_budget(tmp_path: Path):
    search = searched(tmp_path, 9, Computed())
    for arm in ARMS:
        scores = {
            number: max(one["forgotten"] for one in result["readings"] if one["share"] == 1.0)
            for number, result in search.studies[arm].results(0).items()
        }
        best = sorted(scores, key=lambda number: -scores[number])[:3]
        assert {*search.studies[arm].results(1)} == set(best)


def test_a_finished_search_makes_nothing_again(tmp_path: Path):
    searched(tmp_path, 4, Computed())
    again = Computed()
    searched(tmp_path, 4, again)
    assert again.made == []


def test_more_trials_go_on_from_what_is_there(tmp_path: Path):
    searched(tmp_path, 3, Computed())
    more = Computed()
    searched(tmp_path, 6, more)
    assert [made for made in more.made if made[2] == 0] == [(arm, number, 0) for number in (3, 4, 5) for arm in ARMS]


def test_it_ends_in_time_with_both_arms_at_the_top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bench = Computed(seconds=60.0)
    monkeypatch.setattr(clock, "monotonic", lambda: 60.0 * len(bench.made))
    search = searched(tmp_path, None, bench, minutes=30)
    counts = [[len(search.studies[arm].results(rung.number)) for arm in ARMS] for rung in search.rungs]
    assert all(joint == merged for joint, merged in counts)
    assert counts[-1][0] >= 1
    assert 60.0 * len(bench.made) <= 60 * 30


def test_where_a_higher_rung_would_take_too_long_the_lower_one_is_chosen_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    bench = Computed(seconds=60.0)
    monkeypatch.setattr(clock, "monotonic", lambda: 60.0 * len(bench.made))
    search = searched(tmp_path, None, bench, minutes=4.5)
    assert [rung for _, _, rung in bench.made] == [0, 0]
    assert [one.rung for one in search.at_top()][:1] == [0]


def test_no_time_for_two_trials_says_how_much_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bench = Computed(seconds=1000.0)
    monkeypatch.setattr(clock, "monotonic", lambda: 1000.0 * len(bench.made))
    with pytest.raises(RecipeError, match=r"--minutes 0.5: no time for two trials.*give --minutes \d+ or more"):
        searched(tmp_path, None, bench, minutes=0.5)


def test_events_tell_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rungs, seen, bench = ladder(1000), list[Event](), Computed()
    monkeypatch.setattr(clock, "monotonic", lambda: 1.0 * len(bench.made))
    studies: dict[Arm, Study] = {
        arm: Study(tmp_path, arm, SPACES, [name_of(*point) for point in points(arm, wide=False)], 0) for arm in ARMS
    }
    Search(cast("Bench", bench), studies, rungs, Clock(None, rungs), tmp_path, 3, seen.append).run()
    assert [event.done for event in seen] == list(range(1, len(seen) + 1))
    assert {event.whole for event in seen} == {len(seen)}
    left = [event.left for event in seen]
    assert left[0] is not None
    assert left[-1] is not None
    assert left[-1] < left[0]


@given(rows=st.integers(8, 100_000))
def test_rungs_rise(rows: int):
    rungs = ladder(rows)
    assert [rung.number for rung in rungs] == list(range(len(rungs)))
    for lower, upper in pairwise(rungs):
        assert lower.rows < upper.rows
        assert lower.items < upper.items
        assert lower.tokens < upper.tokens
    assert rungs[-1].rows == min(rows, 1500)
    assert [rung.wide for rung in rungs] == [rung.number > 0 for rung in rungs]


@given(trials=st.integers(1, 500))
def test_of_three_trials_one_goes_on(trials: int):
    assert promoted(trials, 0) == trials
    assert 1 <= promoted(trials, 2) <= promoted(trials, 1) <= trials


@given(points=st.lists(st.tuples(st.floats(0, 5), st.floats(-1, 5)), max_size=30))
def test_the_front_is_what_nobody_beats(points: list[tuple[float, float]]):
    readings = [
        Reading("joint", number, 0, "", 1.0, 1.0, damage, True, forgotten)
        for number, (damage, forgotten) in enumerate(points)
    ]

    def beaten(one: Reading) -> bool:
        return any(
            (other.damage or 0) <= (one.damage or 0) and other.forgotten >= one.forgotten
            and (other.damage, other.forgotten) != (one.damage, one.forgotten)
            for other in readings
        )  # fmt: skip

    kept = front(readings)
    assert all(not beaten(one) and one.forgotten > 0 for one in kept)
    naive = {(one.damage, one.forgotten) for one in readings if one.forgotten > 0 and not beaten(one)}
    assert {(one.damage, one.forgotten) for one in kept} == naive


@given(points=st.lists(st.tuples(*[st.integers(0, 4)] * 3), max_size=30))
def test_what_an_attack_brings_back_is_an_objective_of_the_front(points: list[tuple[int, int, int]]):
    readings = [
        Reading("joint", number, 0, "", 1.0, 1.0, damage, True, forgotten, back)
        for number, (damage, forgotten, back) in enumerate(points)
    ]

    def beaten(one: tuple[int, int, int]) -> bool:
        return any(
            other != one and other[0] <= one[0] and other[1] >= one[1] and other[2] <= one[2] for other in points
        )

    kept = [(one.damage, one.forgotten, one.back) for one in front(readings)]
    assert set(kept) == {one for one in points if one[1] > 0 and not beaten(one)}
    assert len(kept) == len(set(kept))


class Attacked(Computed):
    """A bench on which the later a trial is, the more it forgets and the more of that an attack brings back."""

    against = "an attack"

    def run(self, arm: Arm, setting: Setting, rung: Rung) -> dict[str, Any]:
        result, number = super().run(arm, setting, rung), setting.number
        return {**result, "readings": [{**one, "forgotten": number, "back": 2 * number} for one in result["readings"]]}


def test_under_an_attack_who_lasts_longest_goes_on(tmp_path: Path):
    search = searched(tmp_path, 6, Attacked())
    assert {*search.studies["joint"].results(1)} == {0, 1}
    assert search.at_top("joint")[0].number == 0


class Loses(Computed):
    """A bench on which the later a trial the more it forgets, and the more still it loses of what must stay."""

    def run(self, arm: Arm, setting: Setting, rung: Rung) -> dict[str, Any]:
        result, number = super().run(arm, setting, rung), setting.number
        forgets = {"forgotten": 0.5 + 0.1 * number, "lost": 0.2 * number}
        return {**result, "readings": [{**one, **forgets} for one in result["readings"]]}


def test_who_loses_less_of_what_must_stay_than_it_forgets_goes_on(tmp_path: Path):
    search = searched(tmp_path, 6, Loses())
    assert {*search.studies["joint"].results(1)} == {0, 1}
    assert search.at_top("joint")[0].number == 0
    assert {one.number for one in front(search.readings(1))} == {0}


def test_no_time_is_taken_that_choosing_and_judging_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(clock, "monotonic", lambda: 100.0)
    rungs = ladder(1000)
    counted = Clock(10, rungs, _began=0.0)
    counted.note("joint", rungs[0], "npo", {"trained": 50.0, "seconds": 60.0})
    assert counted.end(1) == 0
    assert counted.has_time("joint", rungs[0])
    rate = 10.0 / (2 * clock.reads(rungs[0].tokens, rungs[0].items))
    counted.closing = lambda reached: Closing(round(reached * 240 / rate))
    assert counted.end(2) == pytest.approx(480, rel=0.01)
    assert counted.has_time("joint", rungs[0])
    counted.closing = lambda reached: Closing(round(reached * 290 / rate))
    assert not counted.has_time("joint", rungs[0])
    assert not counted.holds(dict.fromkeys(ARMS, "npo"), rungs[1])


@pytest.mark.parametrize(("beside", "asks"), [(20.0, 3), (0.0, 5)])
def test_what_attacks_take_is_foretold_for_more_items_and_for_the_end(beside: float, asks: int):
    rate, rungs = 1e-2, ladder(1000)

    def attack(items: int) -> float:
        return beside + asks * rate * clock.reads(0, items)

    def trial(arm: Arm, rung: Rung) -> dict[str, float]:
        count = len(points(arm, wide=rung.wide, attacked=True))
        attacked, read = count * attack(rung.items), count * rate * clock.reads(rung.tokens, rung.items)
        trained = 0.1 * rung.rows * rung.epochs
        return {"trained": trained, "attacked": attacked, "seconds": trained + read + attacked}

    counted = Clock(None, rungs, lambda reached: Closing(5000 * reached, 8, 128), asks)
    for arm in ARMS:
        counted.note(arm, rungs[0], "npo", trial(arm, rungs[0]))
    for arm in ARMS:
        for rung in rungs:
            assert counted.expected(arm, rung) == pytest.approx(trial(arm, rung)["seconds"])
    assert counted.end(3) == pytest.approx(15000 * rate + 8 * attack(128))


def test_a_method_that_trains_in_no_time_is_foretold_as_one():
    rungs = ladder(1000)
    counted = Clock(None, rungs)
    for method, trained in (("adaptive_rmu", 10.0), ("npo", 100.0)):
        counted.note("joint", rungs[0], method, {"trained": trained, "seconds": trained + 5.0})
    assert counted.expected("joint", rungs[0]) == pytest.approx(60.0)
    assert counted.expected("joint", rungs[0], "npo") == pytest.approx(105.0)
    wider, longer = (counted.expected("merged", rungs[1], method) or 0.0 for method in ("adaptive_rmu", "npo"))
    assert longer - wider == pytest.approx(90.0 * rungs[1].rows / rungs[0].rows)
    assert counted.expected("joint", rungs[0], "task_vector_negation") == pytest.approx(60.0)


def test_no_more_is_read_than_there_is():
    rungs = ladder(1000, 30, 300)
    assert [rung.items for rung in rungs] == [24, 30, 30]
    assert [rung.tokens for rung in rungs] == [256, 300, 300]


def test_where_no_trial_went_on_none_was_cut(tmp_path: Path):
    search = searched(tmp_path, 4, Computed())
    spent = time_spent(search)
    assert spent["cut_share"] == pytest.approx((4 - 2 + 2 - 1) * 2 / (2 * (4 + 2 + 1)))
    assert [one["saved"] for one in spent["rungs"]] == [4.0, 2.0, 0.0]
    search.rungs = search.rungs[:1]
    assert time_spent(search)["cut_share"] == 0


def test_time_counts_earlier_sittings():
    counted = Clock(1.0, ladder(1000), earlier=59.9)
    assert not counted.has_time("joint", counted.rungs[0])
    assert counted.left({}) == pytest.approx(0.1, abs=0.1)


class JointImproves(Computed):
    """A bench on which the later a joint trial is the better, and the first merged one is the best."""

    def run(self, arm: Arm, setting: Setting, rung: Rung) -> dict[str, Any]:
        result = super().run(arm, setting, rung)
        height = setting.number if arm == "joint" else -setting.number
        return {**result, "readings": [{**one, "forgotten": 10.0 + height} for one in result["readings"]]}


def test_more_trials_leave_both_arms_as_many_at_every_rung(tmp_path: Path):
    for trials in (2, 3, 4):
        search = searched(tmp_path, trials, JointImproves())
        for rung in search.rungs:
            joint, merged = (len(search.studies[arm].results(rung.number)) for arm in ARMS)
            assert joint == merged


class Slower(Computed):
    """A bench on which joint unlearning takes ten times as long as the merged model."""

    seconds: float = 0.0

    def run(self, arm: Arm, setting: Setting, rung: Rung) -> dict[str, Any]:
        took = 100.0 if arm == "joint" else 10.0
        self.seconds += took
        return {**super().run(arm, setting, rung), "seconds": took, "trained": took / 2}


@pytest.mark.parametrize("minutes", [10, 20, 33, 60])
def test_the_quicker_arm_gets_no_more_trials_once_the_slower_has_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minutes: float
):
    bench = Slower()
    monkeypatch.setattr(clock, "monotonic", lambda: bench.seconds)
    search = searched(tmp_path, None, bench, minutes=minutes)
    counts = [[len(search.studies[arm].results(rung.number)) for arm in ARMS] for rung in search.rungs]
    assert counts[0][0] >= 2
    assert all(joint == merged for joint, merged in counts)


@pytest.mark.parametrize(("attack", "why"), [(FewShot, "multiple_choice"), (SiblingMerge, "sibling")])
def test_an_attack_that_cannot_be_asked_is_refused_before_any_training(tmp_path: Path, attack: type[Attack], why: str):
    forget, retain = (
        inspect([write_rows(tmp_path / f"{name}.jsonl", name)], "--forget") for name in ("forget", "retain")
    )
    parts = divide(forget, retain, tmp_path / "parts")
    bench = Bench(
        LanguageModel(id="lab:model"), Asking(parts, "texts"), ByColumn(column="group"), BUDGET,
        cast("Executor", None), against=attack,
    )  # fmt: skip
    with pytest.raises(RecipeError, match=f"--against.*{why}"):
        attack_asks(bench, ladder(parts.rows["forget-train"])[0])


def test_the_recipe_of_an_even_sum_names_its_weights(tmp_path: Path):
    forget, retain = (
        inspect([write_rows(tmp_path / f"{name}.jsonl", name)], "--forget") for name in ("forget", "retain")
    )
    parts = divide(forget, retain, tmp_path / "parts")
    bench = Bench(
        LanguageModel(id="lab:model"), Asking(parts, "texts"), ByColumn(column="group"), BUDGET, cast("Executor", None)
    )
    experiment = bench.experiment(Setting(0, "npo", {}, {}), ladder(parts.rows["forget-train"])[-1], "even sum")
    variants = [
        cast("Variant", SimpleNamespace(subset=name, artifact=SimpleNamespace(manifest={"norm": norm})))
        for name, norm in (("a", 1.0), ("b", 3.0))
    ]
    assert bench.weighed(experiment, "even sum", variants).merge.weights == {"a": 2.0, "b": pytest.approx(2 / 3)}
    assert bench.weighed(experiment, "sum", variants) == experiment


def write_rows(file: Path, word: str) -> Source:
    rows = [{"text": f"{word} {number} is one", "group": "ab"[number % 2]} for number in range(80)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Source(path=str(file))

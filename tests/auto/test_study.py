"""Trials are drawn by their number alone: killed anywhere and continued, a study asks and knows the same."""

from __future__ import annotations

import multiprocessing
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from spunge.auto.spaces import Dimension, Space
from spunge.auto.study import JOURNAL, Setting, Study

SPACES = [
    Space(
        "steep",
        [Dimension("rate", 1e-4, 1e-1, log=True, first=1e-3), Dimension("layer", 1, 9, integer=True, first=3)],
        {},
    ),
    Space(
        "flat", [Dimension("beta", 0.1, 2.0, first=1.0), Dimension("loss", choices=('"kl"', '"nll"'), first='"kl"')], {}
    ),
]
READINGS = ["at 1", "at 3"]


def forgotten(setting: Setting) -> float:
    fields = setting.fields
    return 1 - abs(fields["rate"] - 0.01) * 10 if setting.method == "steep" else 0.2 * fields["beta"]


def told(setting: Setting) -> dict[str, list[float]]:
    return {name: [forgotten(setting) * (1 + place), 0.1 * (1 + place)] for place, name in enumerate(READINGS)}


def open_study(directory: Path, **options: Any) -> Study:
    return Study(directory, "joint", SPACES, READINGS, 0, **options)


def run(directory: Path, most: int, **options: Any) -> dict[int, Setting]:
    study = open_study(directory, **options)
    while (setting := study.take(most)) is not None:
        study.note(setting.number, 0, {"value": forgotten(setting)})
        study.tell(setting, told(setting))
    return study.settings()


def dies_at(directory: Path, most: int, at: int) -> None:
    """Makes trials in a process that is gone without a word after so many calls."""
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            os._exit(9)

    study = open_study(directory)
    while True:
        count()
        setting = study.take(most)
        if setting is None:
            return
        count()
        study.note(setting.number, 0, {"value": forgotten(setting)})
        count()
        study.tell(setting, told(setting))


def in_a_process(directory: Path, most: int, at: int) -> None:
    process = multiprocessing.get_context("fork").Process(target=dies_at, args=(directory, most, at))
    process.start()
    process.join()


def content(directory: Path) -> list[tuple[Mapping[str, Any], Any]]:
    trials = open_study(directory)._study.get_trials()
    return [(trial.params, trial.values) for trial in trials if trial.state.name == "COMPLETE"]


def test_killed_twice_it_draws_what_it_would_have_drawn(tmp_path: Path):
    whole = run(tmp_path / "whole", 14)
    for first, second in ((2, 8), (9, 17), (21, 3)):
        directory = tmp_path / f"killed {first} {second}"
        in_a_process(directory, 14, first)
        in_a_process(directory, 14, second)
        assert run(directory, 14) == whole
        assert content(directory) == content(tmp_path / "whole")


def test_a_longer_search_begins_as_a_shorter_one(tmp_path: Path):
    shorter, longer = run(tmp_path / "a", 6), run(tmp_path / "b", 9)
    assert shorter == {number: setting for number, setting in longer.items() if number < 6}


def test_a_line_that_was_cut_off_in_writing_is_cut_off(tmp_path: Path):
    whole = run(tmp_path, 5)
    with (tmp_path / JOURNAL).open("ab") as journal:
        journal.write(b'{"op_code": 5, "worker')
    assert run(tmp_path, 8).items() >= whole.items()


def test_a_process_killed_while_it_writes_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def dies_writing() -> None:
        study = open_study(Path("here"))
        setting = study.take(2)
        assert setting is not None
        monkeypatch.setattr(os, "fsync", lambda file: os._exit(9))  # within Optuna's lock on its journal
        study.note(setting.number, 0, {})

    process = multiprocessing.get_context("fork").Process(target=dies_writing)
    process.start()
    process.join()
    assert process.exitcode == 9
    assert [setting.number for setting in run(Path("here"), 2).values()] == [0, 1]


def test_each_methods_own_rules_come_first(tmp_path: Path):
    settings = run(tmp_path, 3)
    assert (settings[0].method, dict(settings[0].fields)) == ("steep", {"rate": 1e-3, "layer": 3})
    assert (settings[1].method, dict(settings[1].fields)) == ("flat", {"beta": 1.0, "loss": "kl"})


def test_two_processes_share_the_trials(tmp_path: Path):
    one, two = open_study(tmp_path), open_study(tmp_path)
    taken = [one.take(3), two.take(3), one.take(3), two.take(3)]
    assert [setting and setting.number for setting in taken] == [0, 1, 2, None]
    assert one.waiting()
    assert two.waiting()


def test_what_came_to_nothing_is_told_and_not_drawn_again(tmp_path: Path):
    study = open_study(tmp_path)
    setting = study.take(1)
    assert setting is not None
    study.tell(setting, {})
    assert study.take(1) is None
    assert [values for _, values in content(tmp_path)] == [[0.0, 10.0]] * 2


@pytest.mark.long
def test_it_finds_more_than_chance_does(tmp_path: Path):
    best: dict[str, list[float]] = {"tpe": [], "random": []}
    for sampler, found in best.items():
        for seed in range(8):
            study = Study(tmp_path / f"{sampler} {seed}", "joint", SPACES, READINGS, seed, sampler=sampler)  # type: ignore[arg-type]
            values = []
            while (setting := study.take(30)) is not None:
                values.append(forgotten(setting))
                study.tell(setting, told(setting))
            found.append(max(values))
    assert sum(best["tpe"]) > sum(best["random"])


def test_the_seed_moves_the_draw(tmp_path: Path):
    draws = random.sample(range(100), 4)
    settings = []
    for seed in draws:
        study = Study(tmp_path / str(seed), "joint", SPACES, READINGS, seed)
        for _ in range(3):
            settings.append(study.take(3))
    drawn = [setting.fields for setting in settings if setting is not None and setting.number == 2]
    assert len({str(fields) for fields in drawn}) == len(draws)

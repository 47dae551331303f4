"""Slots: which process sees which device, what tasks on one device share, and what becomes of a worker that dies."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import re
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from spunge.errors import WorkerDied
from spunge.interfaces import Work, silent
from spunge.run.executors.local import Local
from spunge.run.executors.workers import Patience, Slot, Workers, slots
from spunge.run.store import Artifact, Store


@dataclass(frozen=True)
class Look:
    """A task that notes where it runs, and how many tasks were there before it."""

    number: int
    name: str = "look"
    seed: int = 0
    stage: str = "look"
    dies: bool = False

    @property
    def inputs(self) -> Mapping[str, Any]:
        return {"number": self.number}

    def make(self, work: Work) -> Mapping[str, Any]:
        if self.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        shared = work.resident.cached("shared", list)
        shared.append(self.number)
        time.sleep(0.1)
        (work.output / "seen").write_text(json.dumps(shared))
        return {"visible": os.environ.get("CUDA_VISIBLE_DEVICES"), "process": os.getpid(), "device": work.device}


def test_each_slot_is_a_process_with_its_own_devices_and_one_that_dies_loses_nothing(tmp_path: Path) -> None:
    store, noted = Store(tmp_path), []

    def note(task: Any, artifact: Artifact) -> None:
        noted.append(task.number)

    tasks = [Look(number) for number in range(8)]
    with Local(store, (Slot("cpu", "GPU-a"), Slot("cpu", "GPU-b")), finished=note) as executor:
        artifacts = executor.run(tasks)
        with pytest.raises(WorkerDied, match=r"^look last: a worker process was killed"):
            executor.run([Look(8, name="last", dies=True)])
    assert noted == list(range(8))
    seen: dict[str, set[int]] = {}
    for artifact in artifacts:
        seen.setdefault(artifact.manifest["visible"], set()).add(artifact.manifest["process"])
    assert seen.keys() == {"GPU-a", "GPU-b"}
    assert all(len(processes) == 1 for processes in seen.values())
    assert os.getpid() not in set.union(*seen.values())
    # What tasks keep on a device is there for the next: eight tasks met two residents.
    lengths = sorted(len(json.loads((artifact.path / "seen").read_text())) for artifact in artifacts)
    assert lengths.count(1) == 2
    assert max(lengths) >= 4
    with Local(store) as executor:
        assert [artifact.reused for artifact in executor.run([*tasks, Look(8)])] == [True] * 8 + [False]


def test_one_slot_needs_no_process(tmp_path: Path) -> None:
    with Local(Store(tmp_path)) as executor:
        (artifact,) = executor.run([Look(0)])
    assert artifact.manifest["process"] == os.getpid()


@pytest.mark.parametrize(
    ("device", "jobs", "seen", "expected"),
    [
        ("cpu", 2, "0,1", [Slot("cpu", "")] * 2),
        ("cuda", 1, "3,5", [Slot("cuda")]),
        ("cuda", 3, "3,GPU-x", [Slot("cuda", "3"), Slot("cuda", "GPU-x"), Slot("cuda", "3")]),
        ("cuda:1", 2, "0,1", [Slot("cuda:1")] * 2),
    ],
)
def test_gpus_are_dealt_out_in_turn(
    monkeypatch: pytest.MonkeyPatch, device: str, jobs: int, seen: str, expected: list[Slot]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    assert slots(device, jobs) == expected


def test_there_are_no_more_processes_than_cores_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    with pytest.warns(RuntimeWarning, match="--jobs 99: this process may use 2 cores"):
        assert slots("cpu", 99) == [Slot("cpu", "")] * 2


@dataclass(frozen=True)
class Nap:
    """A task that takes a moment, and may stop the process that first takes it, or hang in it."""

    number: int
    seconds: float = 0.002
    stops: Path | None = None
    hangs: Path | None = None
    seed: int = 0
    name: str = "nap"
    stage: str = "nap"

    @property
    def inputs(self) -> Mapping[str, Any]:
        return {"number": self.number}

    def make(self, work: Work) -> Mapping[str, Any]:
        if self.stops is not None and not self.stops.exists():
            self.stops.touch()
            os.kill(os.getpid(), signal.SIGSTOP)
        if self.hangs is not None and not self.hangs.exists():
            self.hangs.touch()
            ctypes.CDLL(None).sleep(600)  # native code without the GIL: Python's other threads go on
        time.sleep(self.seconds)
        return {}


@dataclass(frozen=True)
class Busy(Nap):
    """A task that computes without a word."""

    def make(self, work: Work) -> Mapping[str, Any]:
        until = time.monotonic() + self.seconds
        while time.monotonic() < until:
            pass
        return {}


def test_two_hundred_tasks_asked_for_at_once_each_have_their_own_clock(tmp_path: Path) -> None:
    begun = time.perf_counter()
    with Local(Store(tmp_path)) as executor:
        artifacts = executor.run([Nap(number) for number in range(200)])
    took = time.perf_counter() - begun
    seconds = [artifact.manifest["seconds"] for artifact in artifacts]
    assert min(seconds) >= 0.002
    assert sum(seconds) <= took


def test_only_workers_are_ended_when_a_run_fails(tmp_path: Path) -> None:
    mine = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    mine.start()
    try:
        with pytest.raises(WorkerDied), Local(Store(tmp_path), [Slot("cpu", "")] * 2) as executor:
            executor.run([Look(0, dies=True), Nap(1, seconds=30)])
        assert mine.is_alive()
        assert multiprocessing.active_children() == [mine]
    finally:
        mine.kill()
        mine.join()


def test_a_worker_that_stands_still_is_told_of_and_its_task_given_to_another(tmp_path: Path) -> None:
    workers = Workers(Store(tmp_path), [Slot("cpu", "")], silent, Patience(beat=0.1, silent=4, gone=6, stepless=7))
    stopped = Nap(0, stops=tmp_path / "stopped", name="stopped")
    hung = Nap(1, hangs=tmp_path / "hung", name="hung")
    busy = Busy(2, seconds=9, name="busy")
    try:
        with pytest.warns(RuntimeWarning) as told:
            made = dict(workers.run({7: stopped, 8: hung, 9: busy}))
    finally:
        workers.stop(at_once=True)
    assert made.keys() == {7, 8, 9}
    lines = [str(one.message) for one in told]
    for line in (
        r"nap stopped: its worker process \d+ has given no sign of life for 4 s",
        r"nap hung: its worker process \d+ has given no sign of life for 4 s",
        r"nap busy: its worker process \d+ computes, but has finished no step for 7 s",
    ):
        assert any(re.match(line, one) for one in lines), lines
    assert not any(re.match("nap busy: .* no sign of life", one) for one in lines)

"""Runs tasks on this machine: one after the other around one resident model, or in a process for each slot."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread, current_thread, main_thread
from typing import Any, NamedTuple

from spunge.errors import WorkerDied
from spunge.interfaces import Progress, Work, silent
from spunge.run.executors import Task
from spunge.run.store import Artifact, Store, key
from spunge.weights.language_model import Resident

_GRACE = 10.0
"""Seconds that a worker has to tidy up before it is killed."""


class Slot(NamedTuple):
    """A place for one process, which runs one task at a time."""

    device: str = "cpu"
    """The torch device that its tasks compute on."""
    visible: str | None = None
    """What CUDA_VISIBLE_DEVICES is in its process; None leaves it as it is."""


def slots(device: str, jobs: int) -> list[Slot]:
    """Returns as many slots as jobs; `cuda` without a number deals out the GPUs that this process sees, in turn."""
    if device == "cpu":
        return [Slot(device, "")] * jobs
    if device != "cuda" or jobs == 1:
        return [Slot(device)] * jobs
    import torch

    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = said.split(",") if said else [str(number) for number in range(torch.cuda.device_count())]
    return [Slot(device, gpus[job % len(gpus)]) for job in range(jobs)]


@dataclass
class Local:
    """One process, or one for each slot; tasks in one process share its resident model and caches. A context manager.

    A process that waits takes the next task, whatever it is: all of an experiment are of one base model.
    """

    store: Store
    slots: Sequence[Slot] = (Slot(),)
    progress: Progress = silent
    finished: Callable[[Task, Artifact], None] = lambda task, artifact: None
    """Called for every task as it ends, in the order of the tasks."""
    _resident: Resident | None = field(default=None, init=False)
    _pool: ProcessPoolExecutor | None = field(default=None, init=False)
    _told: Any = field(default=None, init=False)

    def run(self, tasks: Sequence[Task]) -> list[Artifact]:
        """Runs the tasks that the store does not hold yet.

        Raises:
            WorkerDied: A process ended without a word; what others finished is kept.
        """
        artifacts = []
        for task, artifact in zip(tasks, self._artifacts(tasks), strict=True):
            self.finished(task, artifact)
            artifacts.append(artifact)
        return artifacts

    def _artifacts(self, tasks: Sequence[Task]) -> Iterator[Artifact]:
        found = [self.store.reuse(task.stage, task.inputs) for task in tasks]
        of = bundles(tasks, [place for place, artifact in enumerate(found) if artifact is None])
        make = self._made_here if len(self.slots) == 1 or not of else self._made_by_workers
        made = make(tasks, of)
        for place, artifact in enumerate(found):
            yield artifact or made(place)

    def _made_here(self, tasks: Sequence[Task], of: Mapping[int, tuple[int, ...]]) -> Callable[[int], Artifact]:
        """Makes a task when it is asked for, with all that are made with it."""
        self._resident = resident = self._resident or Resident(self.slots[0].device)
        made: dict[int, Artifact] = {}

        def make(place: int) -> Artifact:
            if place not in made:
                some = build(self.store, [tasks[each] for each in of[place]], resident, self.progress)
                made.update(zip(of[place], some, strict=True))
            return made[place]

        return make

    def _made_by_workers(self, tasks: Sequence[Task], of: Mapping[int, tuple[int, ...]]) -> Callable[[int], Artifact]:
        """Hands all tasks out to the workers, and waits for one when it is asked for."""
        pool = self._pool = self._pool or self._start_pool()
        with _ctrl_c_ignored():  # by the workers, which start here and inherit it: the parent ends them
            futures = {
                bundle: pool.submit(_build_in_worker, self.store, [tasks[place] for place in bundle])
                for bundle in dict.fromkeys(of.values())
            }

        def wait(place: int) -> Artifact:
            try:
                return futures[of[place]].result()[of[place].index(place)]
            except BrokenProcessPool as error:
                raise WorkerDied(
                    f"{tasks[place].stage} {tasks[place].name}: a worker process was killed, most likely for want of "
                    "memory: lower --jobs or the batch size; finished stages are kept, and the same command continues"
                ) from error

        return wait

    def _start_pool(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        self._told = context.SimpleQueue()
        free = context.SimpleQueue()
        for slot in self.slots:
            free.put(slot)
        Thread(target=self._listen, args=(self._told,), daemon=True).start()
        start = (free, max(1, (os.cpu_count() or 1) // len(self.slots)), self._told)
        return ProcessPoolExecutor(len(self.slots), context, initializer=_start_worker, initargs=start)

    def _listen(self, told: Any) -> None:
        while (message := told.get()) is not None:
            what, done, total, figures = message
            self.progress(what, done, total, **figures)

    def __enter__(self) -> Local:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if self._pool is not None:
            if kind is not None:  # do not wait for what nobody wants any more
                workers = multiprocessing.active_children()
                for worker in workers:
                    worker.terminate()
                deadline = time.monotonic() + _GRACE
                for worker in workers:
                    worker.join(max(0.0, deadline - time.monotonic()))
                    worker.kill()
            self._pool.shutdown(cancel_futures=True)
            self._told.put(None)
        self._pool = self._resident = None


@contextlib.contextmanager
def _ctrl_c_ignored() -> Iterator[None]:
    if current_thread() is not main_thread():  # only the main thread may set handlers
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def bundles(tasks: Sequence[Task], missing: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """Says for every missing task which ones are made with it: those of its group, or it alone."""
    groups: dict[str, list[int]] = {}
    for place in missing:
        if (group := tasks[place].group) is not None:
            groups.setdefault(group, []).append(place)
    together = {place: tuple(group) for group in groups.values() for place in group}
    return {place: together.get(place, (place,)) for place in missing}


def build(store: Store, tasks: Sequence[Task], resident: Resident, progress: Progress) -> list[Artifact]:
    """Returns the artifacts of a task, or of several of one group, making those that the store lacks in one go."""
    if len(tasks) == 1:
        return [_build(store, tasks[0], resident, progress, tasks[0].make)]
    artifacts: dict[int, Artifact] = {}
    works: dict[int, Work] = {}
    notes: dict[int, Mapping[str, Any]] = {}

    def begin(place: int) -> None:
        """Opens the place of one artifact inside the one before; when all are open, they are made."""
        if place == len(tasks):
            some = [tasks[each] for each in works]
            notes.update(zip(works, tasks[0].make_together(some, list(works.values())), strict=True))
            return

        def make(work: Work) -> Mapping[str, Any]:
            works[place] = work
            begin(place + 1)
            return notes[place]

        artifacts[place] = _build(store, tasks[place], resident, progress, make)
        if place not in works:  # another process was faster
            begin(place + 1)

    begin(0)
    return [artifacts[place] for place in range(len(tasks))]


def _build(
    store: Store, task: Task, resident: Resident, progress: Progress, made: Callable[[Work], Mapping[str, Any]]
) -> Artifact:
    inputs = task.inputs
    name = key(task.stage, inputs)
    label = f"{task.stage} {task.name}"

    def told(what: str, done: int, total: int, /, **figures: float) -> None:
        progress(label, done, total, **figures)

    def make(directory: Path) -> dict[str, Any]:
        noted = made(Work(resident, directory, store.scratch(name), task.seed, told))
        return {
            **noted,
            "device": resident.device,
            "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }

    done = False
    try:
        artifact = store.build(task.stage, inputs, make)
        done = True
    finally:
        store.tidy(name, done=done)
    return artifact


_worker: tuple[Resident, Progress] | None = None


def _start_worker(free: Any, threads: int, told: Any) -> None:
    global _worker
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # leave by the way that cleans up
    Thread(target=_follow_parent, daemon=True).start()
    slot: Slot = free.get()
    if slot.visible is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = slot.visible  # before torch looks for a GPU
    import torch

    torch.set_num_threads(min(threads, torch.get_num_threads()))

    def tell(what: str, done: int, total: int, /, **figures: float) -> None:
        told.put((what, done, total, figures))

    _worker = Resident(slot.device), tell


def _follow_parent() -> None:
    """Ends this process when its parent is gone, killed as it may be: nobody would take what it makes."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _build_in_worker(store: Store, tasks: Sequence[Task]) -> list[Artifact]:
    assert _worker is not None
    try:
        return build(store, tasks, *_worker)
    except SystemExit:  # the pool would take it for an answer, and give this process the next task
        os._exit(1)

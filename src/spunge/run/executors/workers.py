"""Processes that each make one task at a time, and the parent that watches them: one that stands still is replaced."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Lock, Thread, current_thread, main_thread
from typing import Any, NamedTuple

import psutil

from spunge import outside
from spunge.errors import SpungeError, WorkerDied
from spunge.interfaces import Progress
from spunge.run.executors import Task
from spunge.run.executors.build import build
from spunge.run.store import Artifact, Store
from spunge.weights.language_model import Resident

ATTEMPTS = 3
"""How often a task is given to a worker."""
_WORKED = 0.05
"""Seconds of processor time that are a sign of life: reading from a slow disk takes more a minute, waiting none."""
_GRACE = 10.0
"""Seconds that a worker has to tidy up before it is killed."""


@dataclass(frozen=True)
class Patience:
    """How long a worker may give no sign of life, in seconds: a step of its task done, or processor time used."""

    beat: float = 5.0
    """Between two looks at what a worker has used."""
    silent: float = 60.0
    """Without a sign, until the user is told."""
    gone: float = 600.0
    """Until it is killed and its task given to another. Long, as a worker that a busy machine has swapped out comes
    back, and what it has done since its last checkpoint would be lost."""
    stepless: float = 600.0
    """Until the user is told of one that computes and finishes no step: nobody can tell a long one from one without
    end, so it goes on."""


class Slot(NamedTuple):
    """What one process may use, which makes one task at a time."""

    device: str = "cpu"
    """The torch device that its tasks compute on."""
    visible: str | None = None
    """What CUDA_VISIBLE_DEVICES is in its process; None leaves it as it is."""


def slots(device: str, jobs: int) -> list[Slot]:
    """Returns as many slots as jobs; `cuda` without a number deals out the GPUs that this process sees, in turn.

    On the CPU there are no more than cores: processes that share one take turns, and each holds a model of its own (99
    on two cores took five times as long as one).
    """
    if device == "cpu":
        if jobs > (cores := usable_cores()):
            warnings.warn(
                f"--jobs {jobs}: this process may use {cores} core{'s' if cores > 1 else ''}, so no more processes "
                "than that are started: they would only wait for each other, each with a model of its own",
                RuntimeWarning,
                stacklevel=3,
            )
        return [Slot(device, "")] * min(jobs, cores)
    if device != "cuda" or jobs == 1:
        return [Slot(device)] * jobs
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
    return [Slot(device, gpus[job % len(gpus)]) for job in range(jobs)]


def usable_cores() -> int:
    """Returns how many cores this process may use: fewer than the machine has where a scheduler deals them out."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(eq=False)
class Worker:
    """A process and the parent's end of the line to it."""

    slot: Slot
    process: BaseProcess
    line: Connection
    number: int | None = None
    """Of the task that it is at; None while it waits for one."""
    label: str = ""
    """Of that task, for people."""
    heard: float = 0.0
    """When it last gave a sign of life."""
    stepped: float = 0.0
    """When it last finished a step."""
    told: str = ""
    """What the user was last told of it."""


@dataclass
class Workers:
    """A process for each slot, started when there is work for it.

    Not a ProcessPoolExecutor: that knows neither which process is at which task nor whether it lives, and one process
    that is killed breaks the whole pool.
    """

    store: Store
    slots: Sequence[Slot]
    progress: Progress
    patience: Patience = Patience()
    _started: list[Worker] = field(default_factory=list, init=False)

    def run(self, tasks: Mapping[int, Task]) -> Iterator[tuple[int, Artifact]]:
        """Makes tasks, and yields the number and the artifact of each as it ends.

        Raises:
            WorkerDied: A process was killed, or all that a task was given to fell silent; what others finished is kept.
        """
        waiting, attempts = deque(tasks), dict.fromkeys(tasks, 0)
        pause, looked = min(1.0, self.patience.silent / 10), time.monotonic()
        try:
            while waiting or self._busy():
                while waiting and (worker := self._idle()) is not None:
                    number = waiting.popleft()
                    attempts[number] += 1
                    self._give(worker, number, tasks[number])
                busy = self._busy()
                ready = wait([end for worker in busy for end in (worker.line, worker.process.sentinel)], pause)
                before, looked = looked, time.monotonic()
                for worker, number in busy.items():
                    if looked - before > self.patience.silent / 2:  # this process stood still, as on a sleeping laptop
                        worker.heard = worker.stepped = looked
                    if worker.line in ready and (artifact := self._receive(worker)) is not None:
                        yield number, artifact
                    elif worker.process.sentinel in ready and worker.line not in ready:
                        raise _died(worker)
                    elif self._is_gone(worker, looked):
                        self._replace(worker, last=attempts[number] == ATTEMPTS)
                        # To the front: the others' ends are told in the order of the tasks, and all wait for this one.
                        waiting.appendleft(number)
        finally:
            if self._busy():  # nobody waits any longer for what they make
                self.stop(at_once=True)

    def stop(self, *, at_once: bool) -> None:
        """Ends the processes: those that are at work as well, if at once, after a moment to tidy up."""
        for worker in self._started:
            if at_once:
                worker.process.terminate()
            with contextlib.suppress(OSError):  # it is gone already
                worker.line.send(None)
        deadline = time.monotonic() + _GRACE
        for worker in self._started:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            # Whoever has not gone by now is stuck in native code, and hears of no signal that can be caught.
            worker.process.kill()
            worker.process.join()
            worker.line.close()
        self._started.clear()

    def _busy(self) -> dict[Worker, int]:
        return {worker: worker.number for worker in self._started if worker.number is not None}

    def _idle(self) -> Worker | None:
        """Returns a worker without a task, a new one if there is a slot for it."""
        for worker in self._started:
            if worker.number is None:
                return worker
        free = list(self.slots)
        for worker in self._started:
            free.remove(worker.slot)
        if not free:
            return None
        self._started.append(self._start(free[0]))
        return self._started[-1]

    def _start(self, slot: Slot) -> Worker:
        context = multiprocessing.get_context("spawn")  # a fork would share torch's threads and locks as they stand
        line, theirs = context.Pipe()
        # torch would take every core in every process. Two threads where one core is free took seven times as long
        # (docs/log.md, small models and several threads).
        threads = max(1, usable_cores() // len(self.slots))
        process = context.Process(target=_work, args=(theirs, slot, threads, self.patience.beat, outside.folders()))
        with _ctrl_c_ignored():  # by the worker, which inherits it: the parent ends it
            process.start()
        theirs.close()
        return Worker(slot, process, line)

    def _give(self, worker: Worker, number: int, task: Task) -> None:
        worker.number, worker.label = number, f"{task.stage} {task.name}"
        worker.heard = worker.stepped = time.monotonic()
        worker.told = ""
        with contextlib.suppress(BrokenPipeError):  # it has died, as its sentinel will say
            worker.line.send((self.store, task))

    def _receive(self, worker: Worker) -> Artifact | None:
        """Reads one message, a sign of life, a task's progress or how it ended; returns the artifact if it has."""
        try:
            message = worker.line.recv()
        except (EOFError, OSError):
            raise _died(worker) from None
        worker.heard = time.monotonic()
        if message is not None:
            worker.stepped, worker.told = worker.heard, ""
        if isinstance(message, Artifact | BaseException):
            worker.number = None
        if isinstance(message, BaseException):
            raise message
        if isinstance(message, Artifact):
            return message
        if message is not None:
            what, done, total, figures = message
            self.progress(what, done, total, **figures)
        return None

    def _is_gone(self, worker: Worker, now: float) -> bool:
        """Whether a worker has given no sign of life for too long; tells the user when it has not for long."""
        patience, what = self.patience, ""
        if now - worker.heard > patience.silent:
            what = (
                f"has given no sign of life for {patience.silent:g} s, no step done and no processor time used: is it "
                "stopped, waiting for a disk or a lock, or swapped out for want of memory? After "
                f"{patience.gone:g} s it is killed, and the task given to another"
            )
        elif now - worker.stepped > patience.stepless:
            what = (
                f"computes, but has finished no step for {patience.stepless:g} s: if that is no long step, stop the "
                "run and start it again: it continues"
            )
        if what and what != worker.told:
            worker.told = what
            warnings.warn(
                f"{worker.label}: its worker process {worker.process.pid} {what}", RuntimeWarning, stacklevel=4
            )
        return now - worker.heard > patience.gone

    def _replace(self, worker: Worker, *, last: bool) -> None:
        worker.number = None
        worker.process.kill()  # one that is stopped would not hear of SIGTERM
        worker.process.join()
        worker.line.close()
        self._started.remove(worker)
        if last:
            raise WorkerDied(
                f"{worker.label}: {ATTEMPTS} worker processes fell silent at it, each for {self.patience.gone:g} s; "
                "finished stages are kept, and the same command continues"
            )


def _died(worker: Worker) -> WorkerDied:
    worker.number = None
    worker.process.join()
    code = worker.process.exitcode
    how = "was killed, most likely for want of memory" if code == -signal.SIGKILL else f"ended by itself (code {code})"
    return WorkerDied(
        f"{worker.label}: a worker process {how}: lower --jobs or the batch size; finished stages are kept, and the "
        "same command continues"
    )


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


def _work(line: Connection, slot: Slot, threads: int, beat: float, folders: Mapping[str, Path]) -> None:
    """What a worker does: task after task, until the parent says that there are no more."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # leave by the way that cleans up
    Thread(target=_follow_parent, daemon=True).start()
    outside.look_in(folders)  # of tasks, the methods that lie beside the recipe
    lock = Lock()  # two threads write to the line

    def tell(message: Any) -> None:
        with lock:
            line.send(message)

    Thread(target=_beat, args=(tell, beat), daemon=True).start()
    if slot.visible is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = slot.visible  # before torch looks for a GPU
    import torch

    torch.set_num_threads(min(threads, torch.get_num_threads()))
    resident = Resident(slot.device)

    def progress(what: str, done: int, total: int, /, **figures: float) -> None:
        tell((what, done, total, figures))

    while (order := line.recv()) is not None:
        store, task = order
        try:
            tell(build(store, task, resident, progress))
        # Not BaseException: a SystemExit is this process being asked to go.
        except Exception as error:
            tell(_sendable(error))


def _sendable(error: Exception) -> Exception:
    """An error as it can be sent: with its traceback in words, as the real one stays here."""
    if not isinstance(error, SpungeError):
        error.add_note(traceback.format_exc())
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 (bytes of our own)
    except Exception:  # an error of another library whose constructor takes more than its text
        return RuntimeError(traceback.format_exc())
    return error


def _beat(tell: Callable[[Any], None], seconds: float) -> None:
    """Gives a sign of life whenever this process has computed: this thread would beat on while the task's waits."""
    used = 0.0
    with contextlib.suppress(OSError):  # the parent has closed the line
        while True:
            if (now := _processor_time()) - used > _WORKED:
                used = now
                tell(None)
            time.sleep(seconds)


def _processor_time() -> float:
    """Seconds of processor time that this process and its children have used, but for the thread that asks."""
    total = time.process_time() - time.thread_time()
    for child in psutil.Process().children(recursive=True):  # an engine of vLLM's, say
        with contextlib.suppress(psutil.Error):
            times = child.cpu_times()
            total += times.user + times.system
    return total


def _follow_parent() -> None:
    """Ends this process when its parent is gone, killed as it may be: nobody would take what it makes."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)

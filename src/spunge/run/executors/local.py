"""Runs tasks on this machine: one after the other around one resident model, or in a process for each slot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from spunge.interfaces import Progress, silent
from spunge.run.executors import Task
from spunge.run.executors.build import build
from spunge.run.executors.workers import Slot, Workers
from spunge.run.store import Artifact, Store
from spunge.weights.language_model import Resident


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
    _workers: Workers | None = field(default=None, init=False)

    def run(self, tasks: Sequence[Task]) -> list[Artifact]:
        """Runs the tasks that the store does not hold yet.

        Raises:
            WorkerDied: A process was killed; what others finished is kept.
        """
        stored = [self.store.reuse(task.stage, task.inputs) for task in tasks]
        missing = {number: tasks[number] for number, artifact in enumerate(stored) if artifact is None}
        ended = self._run_here(missing) if len(self.slots) == 1 else self._run_in_workers(missing)
        made: dict[int, Artifact] = {}
        artifacts = []
        for number, task in enumerate(tasks):
            artifact = stored[number]
            while artifact is None and number not in made:  # workers end out of order
                made.update([next(ended)])
            artifact = artifact or made.pop(number)
            self.finished(task, artifact)
            artifacts.append(artifact)
        return artifacts

    def _run_here(self, tasks: Mapping[int, Task]) -> Iterator[tuple[int, Artifact]]:
        # Kept from one step of the flow to the next: model and hidden states would be loaded and computed again.
        self._resident = resident = self._resident or Resident(self.slots[0].device)
        # A generator, so that a task is told of as finished before the next one begins.
        for number, task in tasks.items():
            yield number, build(self.store, task, resident, self.progress)

    def _run_in_workers(self, tasks: Mapping[int, Task]) -> Iterator[tuple[int, Artifact]]:
        self._workers = self._workers or Workers(self.store, self.slots, self.progress)
        yield from self._workers.run(tasks)

    def __enter__(self) -> Local:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if self._workers is not None:
            self._workers.stop(at_once=kind is not None)  # do not wait for what nobody wants any more
        self._workers = self._resident = None

"""One task made into an artifact, wherever that happens: its scratch directory, its progress, what it took."""

from __future__ import annotations

import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spunge.interfaces import Progress, Work
from spunge.run.executors import Task
from spunge.run.keys import key
from spunge.run.store import Artifact, Store
from spunge.weights.language_model import Resident


def build(store: Store, task: Task, resident: Resident, progress: Progress) -> Artifact:
    """Returns the artifact of a task, making it if the store lacks it.

    Its scratch directory goes with success; of a failure it stays where there is something to continue from.
    """
    inputs = task.inputs
    name = key(task.stage, inputs)
    label = f"{task.stage} {task.name}"

    def report(_: str, done: int, total: int, /, **figures: float) -> None:
        progress(label, done, total, **figures)

    def make(directory: Path) -> Mapping[str, Any]:
        noted = task.make(Work(resident, directory, store.scratch(name), task.seed, report))
        # The process's peak, not the task's alone: the resident model was there before it.
        # Linux counts it in KiB.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {**noted, "device": resident.device, "peak_memory": peak}

    done = False
    try:
        artifact = store.build(task.stage, inputs, make)
        done = True
    finally:
        store.tidy(name, done=done)
    return artifact

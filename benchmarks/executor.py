"""How much faster independent tasks end in two processes than in one, and what the executor costs for each task.

    OMP_NUM_THREADS=1 python benchmarks/executor.py --subsets 8 --epochs 16

Every task unlearns one of the subsets (RMU, the embedded world's model, one torch thread); both arms run the same tasks
on a store of their own, and begin with nothing loaded. The overhead is that of tasks that do nothing: key, claim,
manifest, sync to the disk, rename.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spunge.interfaces import Work
from spunge.recipe import reading
from spunge.rows.sources import load_corpus
from spunge.run.executors import Task
from spunge.run.executors.local import Local
from spunge.run.executors.workers import Slot
from spunge.run.store import Store
from spunge.run.unlearn import Unlearn
from spunge.run.variant import Base


@dataclass(frozen=True)
class Nothing:
    """A task that does nothing."""

    number: int
    name: str = "nothing"
    seed: int = 0
    stage: str = "nothing"
    group: None = None

    @property
    def inputs(self) -> Mapping[str, Any]:
        return {"number": self.number}

    def make(self, work: Work) -> Mapping[str, Any]:
        return {}

    def make_together(self, tasks: Sequence[Any], works: Sequence[Work]) -> list[Mapping[str, Any]]:
        raise AssertionError("of no group")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subsets", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=16, help="so many that a task takes 20 s at least")
    parser.add_argument("--empty", type=int, default=200, help="tasks that do nothing, for the overhead")
    given = parser.parse_args()
    if os.environ.get("OMP_NUM_THREADS") != "1":
        parser.error("set OMP_NUM_THREADS=1: one thread a process in both arms")
    recipe = reading.read("lab-knowledge", [f"unlearn.epochs={given.epochs}"])
    forget, retain = load_corpus(recipe.forget.sources), load_corpus(recipe.retain.sources) if recipe.retain else None
    base, size = Base(recipe.model), len(forget) // given.subsets
    parts = [forget.select(range(size * part, size * (part + 1))) for part in range(given.subsets)]
    tasks = [
        Unlearn("subset", f"subset:{part}", base, recipe.unlearn, rows.with_subset(str(part)), retain, 0)
        for part, rows in enumerate(parts)
    ]
    base.digest  # noqa: B018 (read once, before either arm)
    alone, shortest = timed(tasks, 1)
    together, _ = timed(tasks, 2)
    print(f"{given.subsets} subsets, the shortest task {shortest:.1f} s")
    print(f"one process {alone:.1f} s, two processes {together:.1f} s: {together / alone:.2f}")
    for count in (1, 2):
        took, _ = timed([Nothing(number) for number in range(given.empty)], count, warm=True)
        print(f"overhead with {count} slot(s): {1000 * took / given.empty:.1f} ms a task")


def timed(tasks: Sequence[Task], count: int, *, warm: bool = False) -> tuple[float, float]:
    """Returns the wall seconds of running the tasks in so many slots, and those of the shortest task."""
    with tempfile.TemporaryDirectory() as root, Local(Store(Path(root)), [Slot()] * count) as executor:
        if warm:  # the start of the processes apart
            executor.run([Nothing(-1 - number) for number in range(2 * count)])
        begun = time.perf_counter()
        artifacts = executor.run(tasks)
        return time.perf_counter() - begun, min(artifact.manifest["seconds"] for artifact in artifacts)


if __name__ == "__main__":
    main()

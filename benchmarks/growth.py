"""How a run's bookkeeping grows: with the subsets, with what the store holds already. CPU seconds of one process.

    OMP_NUM_THREADS=1 python benchmarks/growth.py plan --subsets 100 1000 10000
    OMP_NUM_THREADS=1 python benchmarks/growth.py store --artifacts 500 5000
    OMP_NUM_THREADS=1 python benchmarks/growth.py journal --subsets 25 50 100

The model is the embedded one. `plan` foretells an experiment of so many subsets of two rows; `store` plans the embedded
experiment beside so many artifacts of others; `journal` runs an experiment of so many subsets, one step each, and says
what share of its CPU time goes into noting what ran, and how much is written for that.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spunge.recipe import reading
from spunge.recipe.schema import Experiment
from spunge.run import pipeline
from spunge.run.executors.planned import Planned
from spunge.run.flow import flow
from spunge.run.foretell.plan import plan
from spunge.run.journal import Journal
from spunge.run.store import Store
from spunge.run.subsets import load


def experiment(directory: Path, subsets: int) -> Experiment:
    """Returns an experiment of so many subsets, two rows each, that takes one step of each."""
    rows = [
        {"text": f"the root of plant {row} is ash .", "group": f"group {row // 2:05}"} for row in range(2 * subsets)
    ]
    (directory / "forget.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = {
        "name": "growth",
        "model": {"id": "lab:model"},
        "forget": {"sources": [{"path": str(directory / "forget.jsonl")}]},
        "retain": {"sources": [{"path": "lab:knowledge/retain.jsonl"}]},
        "split": {"by": "column", "column": "group"},
        "unlearn": {"method": "rmu", "layer": 1, "batch_size": 1, "max_steps": 1, "max_length": 16,
                    "retain_max_length": 16},
        "merge": {"method": "ties"},
        "controls": [],
        "evaluate": [{"suite": "hazards", "method": "multiple_choice", "goal": "forget", "style": "continuation",
                      "sources": [{"path": "lab:knowledge/hazards.jsonl"}], "limit": 2}],
    }  # fmt: skip
    return reading.parse(json.dumps(settings))


def plan_subsets(directory: Path, count: int) -> str:
    small = experiment(directory, count)
    begun = time.process_time()
    steps = plan(small, out=directory / "runs")
    took = time.process_time() - begun
    return (
        f"{count:6} subsets, {len(steps):6} tasks: planned in {took:7.2f} CPU s, {1e3 * took / count:.2f} ms a subset"
    )


def plan_beside(directory: Path, count: int) -> str:
    embedded, store = reading.read("lab-knowledge"), Store(directory / "runs" / "store")
    with Planned(store) as planned:
        flow(embedded, load(embedded, weights=False), planned)
    inputs = next(task for task in planned.tasks if task.stage == "unlearn").inputs
    for number in range(count):  # as of other seeds
        store.build("unlearn", {**inputs, "seed": number + 1000}, lambda _: {})
    begun = time.process_time()
    steps = plan(embedded, out=directory / "runs")
    took = time.process_time() - begun
    return (
        f"{count:6} artifacts: {len(steps)} tasks planned in {took:6.2f} CPU s, {1e3 * took / count:.2f} ms an artifact"
    )


def run_subsets(directory: Path, count: int) -> str:
    small = experiment(directory, count)
    spent = {"journal": 0.0, "bytes": 0.0}

    @contextmanager
    def timed() -> Iterator[None]:
        begun, written = time.process_time(), _written()
        yield
        spent["journal"] += time.process_time() - begun
        spent["bytes"] += _written() - written

    class Timed(Journal):
        inside = False

        def _counted(self, verb: Callable[..., None], *args: Any, **more: Any) -> None:
            if self.inside:  # the old journal's note wrote the manifest
                verb(*args, **more)
                return
            self.inside = True
            with timed():
                verb(*args, **more)
            self.inside = False

        def note(self, task: Any, artifact: Any) -> None:
            self._counted(super().note, task, artifact)

        def write(self, *args: Any, **more: Any) -> None:
            self._counted(super().write, *args, **more)

    pipeline.Journal = Timed
    begun = time.process_time()
    pipeline.run(small, out=directory / "runs")
    took = time.process_time() - begun
    return (
        f"{count:6} subsets: run in {took:6.1f} CPU s, of them {spent['journal']:6.2f} "
        f"({spent['journal'] / took:.1%}) in the journal, which writes {spent['bytes'] / 1e6:.1f} MB"
    )


def _written() -> int:
    """Bytes that this process has written so far, to whatever it was."""
    return int(Path("/proc/self/io").read_text().split("wchar: ")[1].split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["plan", "store", "journal"])
    parser.add_argument("--subsets", type=int, nargs="+", default=[25, 50, 100])
    parser.add_argument("--artifacts", type=int, nargs="+", default=[500, 5000])
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    measure = {"plan": plan_subsets, "store": plan_beside, "journal": run_subsets}[options.what]
    with tempfile.TemporaryDirectory() as first:  # whatever is read and imported once
        plan(experiment(Path(first), 2), out=Path(first) / "runs")
    for count in options.artifacts if options.what == "store" else options.subsets:
        with tempfile.TemporaryDirectory() as directory:
            print(measure(Path(directory), count), flush=True)


if __name__ == "__main__":
    main()

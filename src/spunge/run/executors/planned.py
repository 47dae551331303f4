"""An executor that runs nothing: it says for every task whether and why it would run, and what it would take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spunge.interfaces import Forecast, Work
from spunge.run.executors import Foreseeable
from spunge.run.keys import key
from spunge.run.split import Split
from spunge.run.store import Artifact, Store
from spunge.weights.language_model import Resident


@dataclass
class Planned:
    """An executor that runs nothing but splits, and says for every other task whether and why it would run.

    A context manager: what a split may have loaded is let go of at the end.
    """

    store: Store
    device: str = "cpu"
    """Where a split that asks a model computes."""
    steps: list[dict[str, Any]] = field(default_factory=list)
    tasks: list[Foreseeable] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    """Of every step, in which call of `run` it came: tasks of one call do not depend on each other."""
    forecasts: dict[str, Forecast] = field(default_factory=dict)
    """Artifact key → what making it takes; of what is in the store already nothing is forecast."""

    def __post_init__(self) -> None:
        # Nowhere in particular: a plan writes nothing, so nobody opens these directories.
        self._work = Work(Resident(self.device), Path(), Path())
        self._stored: dict[str, list[Mapping[str, Any]]] = {}

    def __enter__(self) -> Planned:
        return self

    def __exit__(self, *error: object) -> None:
        self._work.resident.close()

    def run(self, tasks: Sequence[Any]) -> list[Artifact]:
        """Returns what is in the store, and promises for the rest."""
        self.rounds += [self.rounds[-1] + 1 if self.rounds else 0] * len(tasks)
        return [self._plan(task) for task in tasks]

    def _plan(self, task: Foreseeable) -> Artifact:
        inputs = task.inputs
        name, stored = key(task.stage, inputs), self.store.find(task.stage, inputs)
        step = {"stage": task.stage, "name": task.name, "seed": task.seed, "key": name}
        self.tasks.append(task)
        if stored is not None:
            self.steps.append({**step, "status": "reused", "why": []})
            return stored
        self.steps.append({**step, "status": "computed", "why": self._why(task.stage, inputs)})
        self.forecasts[name] = task.forecast(self._work, self.forecasts)
        # All that follows depends on the subsets, so they are found here and now, and remembered for the run.
        promised = {"subsets": task.names(self._work)} if isinstance(task, Split) else {}
        return Artifact(self.store.root / task.stage / name, {"key": name, **promised}, reused=False)

    def _why(self, stage: str, inputs: Mapping[str, Any]) -> list[str]:
        """Says what differs from the most similar artifact; every manifest is read once, for however many tasks."""
        if stage not in self._stored:
            self._stored[stage] = self.store.stored_inputs(stage)
        return self.store.why(stage, inputs, self._stored[stage])

"""An executor that runs nothing: it says for every task whether and why it would run, and what it would take."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spunge.interfaces import Forecast, Work
from spunge.run.executors import Task
from spunge.run.stages import Split, Unlearn, UnlearnInTurn
from spunge.run.store import Artifact, Store, key
from spunge.weights.language_model import Resident

if TYPE_CHECKING:
    from spunge.foretell.sizes import Size


@dataclass
class Planned:
    """An executor that runs nothing but splits, and says for every other task whether and why it would run."""

    store: Store
    size_of: Callable[[Task, Mapping[str, Size]], Size | None] | None = None
    """Estimates what a task takes: `sizes.size_of`."""
    steps: list[dict[str, Any]] = field(default_factory=list)
    work: Work = field(default_factory=lambda: Work(Resident(), Path(), Path()))
    tasks: list[Task] = field(default_factory=list)
    _sizes: dict[str, Size] = field(default_factory=dict)

    def run(self, tasks: Sequence[Task]) -> list[Artifact]:
        """Returns what is in the store, and promises for the rest."""
        return [self._plan(task) for task in tasks]

    def _plan(self, task: Task) -> Artifact:
        inputs = task.inputs
        found = self.store.find(task.stage, inputs)
        if found is None and isinstance(task, Split):
            found = Artifact(
                Path(),
                {"key": key(task.stage, inputs), "subsets": task.names(self.work)},
                reused=False,
            )
        reused = found is not None and found.reused
        forecast, flops = self._forecast(task, reused)
        self.steps.append({
            "stage": task.stage, "name": task.name, "seed": task.seed, "key": key(task.stage, inputs),
            "status": "reused" if reused else "computed",
            "why": [] if reused else self.store.why(task.stage, inputs),
            "memory": forecast.memory, "disk": forecast.disk, "notes": forecast.notes, "flops": flops,
        })  # fmt: skip
        self.tasks.append(task)
        return found or Artifact(
            self.store.root / task.stage / key(task.stage, inputs), {"key": key(task.stage, inputs)}
        )

    def _forecast(self, task: Task, reused: bool) -> tuple[Forecast, float | None]:
        """What a task takes, as far as the method, or the model's configuration and the rows, say."""
        own, size = Forecast(), None
        unlearning = isinstance(task, Unlearn | UnlearnInTurn)
        if unlearning and not reused and (self.size_of is None or task.base.model.has_tokenizer):
            own = task.forecast(self.work)
        if self.size_of is not None and (not reused or unlearning):
            size = self.size_of(task, self._sizes)
            if size is not None:
                self._sizes[key(task.stage, task.inputs)] = size
        if size is None or reused:
            return own, None
        memory = own.memory if own.memory is not None else size.memory
        return replace(own, memory=memory, disk=own.disk if own.disk is not None else size.disk), size.flops

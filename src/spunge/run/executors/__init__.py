"""Where independent tasks run: in this process, in several, or on a cluster; nothing else knows which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from spunge.interfaces import Forecast, Work
from spunge.run.store import Artifact


class Task(Protocol):
    """One stage's piece of work: what it depends on, and how to make it. Picklable: it may run in another process."""

    @property
    def stage(self) -> str:
        """The store's name for this kind of work."""
        ...

    @property
    def name(self) -> str:
        """What is worked on, for people."""
        ...

    @property
    def seed(self) -> int:
        """The run's seed that this task belongs to."""
        ...

    @property
    def inputs(self) -> Mapping[str, Any]:
        """Everything the result depends on, as JSON values."""
        ...

    def make(self, work: Work) -> Mapping[str, Any]:
        """Fills `work.output` and returns what to note in the manifest."""
        ...


class Foreseeable(Task, Protocol):
    """A task that can say what it will take, as all of an experiment's can."""

    def forecast(self, work: Work, earlier: Mapping[str, Forecast]) -> Forecast:
        """Says what `make` will take, from what was forecast of earlier tasks, by the key of their artifacts.

        Raises:
            SpungeError: Something is wrong that can be known already.
        """
        ...


class Executor(Protocol):
    """Runs tasks that do not depend on each other."""

    def run(self, tasks: Sequence[Task]) -> list[Artifact]:
        """Returns the artifact of every task, in order; finished ones are taken from the store."""
        ...


__all__ = ["Executor", "Foreseeable", "Task"]

"""How a run computes: on which device, in which numbers, in how many processes or on which hosts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from spunge.errors import RecipeError
from spunge.interfaces import Progress
from spunge.recipe.schema import Experiment
from spunge.run.executors import Task
from spunge.run.executors.cluster import Cluster
from spunge.run.executors.local import Local
from spunge.run.executors.workers import slots
from spunge.run.store import Artifact, Store


@dataclass(frozen=True)
class Compute:
    """What a run computes with, apart from what it computes: all but `dtype` leave its results as they are."""

    device: str = "auto"
    """A torch device, or `auto`."""
    dtype: str | None = None
    """What to compute in; None is the model's own."""
    jobs: int = 1
    """Processes to run independent tasks in; with `cuda` each has a GPU of its own, as far as there are."""
    executor: Literal["local", "ray"] = "local"
    """`local`, or `ray` for the hosts of a cluster."""
    address: str = "auto"
    """The Ray cluster's `host:port`."""

    @property
    def chosen_device(self) -> str:
        """The device that the tasks compute on.

        Raises:
            RecipeError: It is not there.
        """
        if self.executor == "ray" and self.device == "cuda":
            return self.device  # the hosts have GPUs; this one, which hands out the tasks, need not
        return choose_device(self.device)

    def applied_to(self, experiment: Experiment) -> Experiment:
        """Returns the experiment in the numbers that are asked for: they can move a result, so the keys hold them."""
        if self.dtype is None:
            return experiment
        return experiment.model_copy(update={"model": experiment.model.model_copy(update={"dtype": self.dtype})})

    def start(self, store: Store, progress: Progress, finished: Callable[[Task, Artifact], None]) -> Local | Cluster:
        """Returns what runs the tasks.

        Args:
            store: Where their artifacts are.
            progress: Told of every step.
            finished: Called for every task as it ends, in the order of the tasks.
        """
        if self.executor == "ray":
            return Cluster(store, self.chosen_device, self.address, progress, finished)
        return Local(store, slots(self.chosen_device, self.jobs), progress, finished)


HERE = Compute()
"""In this process, on a GPU if there is one."""


def choose_device(device: str) -> str:
    """Returns the device that `auto` stands for here; refuses one that is not there."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        # torch's own line names eighteen kinds of device, of which a machine has two.
        here = ["cpu", *(kind for kind in ("cuda", "mps", "xpu") if getattr(torch, kind).is_available())]
        raise RecipeError(f"--device {device}: not available here; there is {', '.join(here)}") from error
    return device

"""The flow walked without running it: what a run would compute and why, what that takes, and what runs refer to."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spunge.errors import ArtifactError, SpungeError
from spunge.interfaces import Forecast
from spunge.recipe import reading
from spunge.recipe.schema import Experiment
from spunge.run.compute import choose_device
from spunge.run.evaluate import Score
from spunge.run.flow import foresee
from spunge.run.foretell.advice import advise
from spunge.run.foretell.machine import BYTES_A_WORD, Machine, look_at
from spunge.run.store import Store
from spunge.weights.shape import shape_of


def plan(experiment: Experiment, *, out: str | Path = "runs") -> list[dict[str, Any]]:
    """Says for every task whether it would be reused or computed, and why: the fields that differ."""
    return foresee(experiment, Store(Path(out) / "store"), "cpu", list, weights=False)[1].steps


@dataclass(frozen=True)
class Plan:
    """What a run would do, and what that takes on a machine."""

    steps: list[dict[str, Any]]
    """Every task's `stage`, `name`, `seed`, `key`, `status` and `why`; `memory` and `disk` in bytes, `seconds`,
    `notes`, and `advice`: what to change where it does not fit. None where that cannot be told."""
    rounds: list[int]
    """Of every step: tasks of one round do not depend on each other, and wait for those of all rounds before."""
    machine: Machine
    forget: int
    """Rows to forget, as they were read: a file whose lines were meant as texts shows here that it is one row."""
    retain: int | None
    """Rows to keep; None where the recipe names none."""
    not_asked: Mapping[str, str] = field(default_factory=dict)
    """Attacks that `robustness` would come to → why they cannot be asked."""

    @property
    def critical_path(self) -> list[dict[str, Any]]:
        """The longest task of every round, which no number of processes makes any shorter."""
        longest: dict[int, dict[str, Any]] = {}
        for step, number in zip(self.steps, self.rounds, strict=True):
            if step["seconds"] is not None and step["seconds"] > longest.get(number, {"seconds": 0.0})["seconds"]:
                longest[number] = step
        return [longest[number] for number in sorted(longest)]


def forecast(
    experiment: Experiment,
    *,
    out: str | Path = "runs",
    device: str = "auto",
    memory: int | None = None,
    warn: Callable[[Sequence[str]], object] = list,
) -> Plan:
    """Returns the plan with what every task that would run takes, from the model's configuration and the rows alone.

    Args:
        experiment: The recipe; of its model only the configuration is read.
        out: The runs root.
        device: The torch device that is planned for.
        memory: Bytes to plan for instead of what is free on the device.
        warn: Told what to know before the run is paid for.
    """
    machine = look_at(choose_device(device), Path(out), memory)
    rows, planned = foresee(experiment, Store(Path(out) / "store"), machine.device, warn, weights=False)
    disk, readers = machine.disk, dict[str, int]()
    for step, task in zip(planned.steps, planned.tasks, strict=True):
        takes = planned.forecasts.get(step["key"], Forecast()) if step["status"] == "computed" else Forecast()
        step |= {"memory": None, "disk": takes.disk, "seconds": None, "notes": takes.notes, "advice": None}
        if takes.operations is not None:
            step["seconds"] = machine.seconds(takes, experiment.model.dtype)
        if takes.memory is not None:
            shape = shape_of(experiment.model)
            beside = (machine.process and machine.process + BYTES_A_WORD * shape.vocabulary) + sum(readers.values())
            if isinstance(task, Score):  # classifiers and judges stay in a process, as the base model does
                beside += shape.parameters * shape.bytes - readers.get(task.scorer.model_dump_json(), 0)
                readers[task.scorer.model_dump_json()] = takes.memory
            step["memory"] = takes.memory + beside
            step["advice"] = advise(task, takes.memory, machine.memory - beside)
        disk -= takes.disk or 0
        if disk < 0:
            step["advice"] = "the disk is full by then: give an --out with more room, or see `spunge store gc`"
    retain = None if rows.retain is None else len(rows.retain)
    return Plan(planned.steps, planned.rounds, machine, len(rows.forget), retain, rows.robustness.left_out)


def needed(out: str | Path, *, allow_code: bool = False) -> dict[str, list[str]]:
    """Returns the key of every artifact that the runs under a runs root refer to, with the runs' names.

    A run that has not ended refers to all that its recipe leads to, and code that the recipe names must be allowed.

    Raises:
        ArtifactError: What a run refers to cannot be told.
    """
    runs: dict[str, list[str]] = {}
    for file in sorted(Path(out).glob("*/recipe.yaml")):
        directory = file.parent
        try:
            manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
            keys = [stage["key"] for stage in manifest["stages"]] if manifest["status"] == "done" else None
        except (OSError, ValueError, KeyError, TypeError):
            keys = None
        try:
            keys = (
                [step["key"] for step in plan(reading.read(file, allow_code=allow_code), out=out)]
                if keys is None
                else keys
            )
        except SpungeError as error:
            raise ArtifactError(
                f"{directory}: this run has not ended, and what it needs cannot be told ({error}); "
                "call this where the run was started, finish the run, or remove its directory"
            ) from error
        for name in dict.fromkeys(keys):
            runs.setdefault(name, []).append(directory.name)
    return runs

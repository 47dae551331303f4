"""How far a run has come, and what a killed one leaves behind for the next."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import time
import warnings
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spunge.errors import TrainingDiverged
from spunge.training import sharding
from spunge.training.rows import Encoded
from spunge.training.settings import Tuning

_MOMENTS = ("exp_avg", "exp_avg_sq")
SAVE_SECONDS = 60.0
"""The least time between two saved states; saving takes at most a twentieth of the time."""


def fingerprint(
    settings: Tuning, seed: int, parameters: Mapping[str, nn.Parameter], terms: Mapping[str, Sequence[Encoded]]
) -> str:
    """Names a training by everything that its result depends on."""
    shapes = {name: list(value.shape) for name, value in parameters.items()}
    digest = hashlib.sha256(json.dumps([settings.dump(), seed, shapes]).encode())
    for name, rows in terms.items():
        digest.update(f"{name}:{len(rows)}".encode())
        for row in rows:
            digest.update(array("i", [row.start, len(row.ids)]).tobytes() + row.ids.tobytes())
    return digest.hexdigest()


class Run:
    """How far a run has come, and what a killed one leaves behind for the next."""

    def __init__(
        self, path: Path, fingerprint: str, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
    ) -> None:
        self.path = path
        self.fingerprint = fingerprint
        self.parameters = parameters
        self.optimizer = optimizer
        self.due = time.monotonic() + SAVE_SECONDS
        self.metrics: list[str] = []
        """A line for every step done."""
        self.best: dict[str, Any] = {}
        """The most forgetful probed step that kept to the utility floor, and its parameters."""
        self.highest_utility = 0.0

    def resume(self) -> None:
        """Takes up the saved state of the same training, if there is one."""
        if not self.path.exists():
            return
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            warnings.warn(f"{self.path}: damaged, so the run begins anew: {error}", RuntimeWarning, stacklevel=3)
            return
        if state["fingerprint"] != self.fingerprint:
            return
        self._set(state["parameters"])
        moments = state["optimizer"]["state"]
        for parameter, moment in zip(self.parameters.values(), moments.values(), strict=True):
            moment |= {name: sharding.piece(moment[name], parameter) for name in _MOMENTS}
        self.optimizer.load_state_dict(state["optimizer"])
        self.metrics, self.best, self.highest_utility = state["metrics"], state["best"], state["highest_utility"]

    def save_now_and_then(self) -> None:
        """Saves the state when the time has come; a reader finds the old file or the new one, never half of one."""
        started = time.monotonic()
        if not sharding.agreed(started >= self.due, str(next(iter(self.parameters.values())).device)):
            return
        optimizer = self.optimizer.state_dict()
        optimizer["state"] = {
            number: {**moments, **{name: _in_one(moments[name]) for name in _MOMENTS}}
            for number, moments in optimizer["state"].items()
        }
        state = {
            "fingerprint": self.fingerprint,
            "parameters": {name: _in_one(parameter.detach()) for name, parameter in self.parameters.items()},
            "optimizer": optimizer,
            "metrics": self.metrics,
            "best": self.best,
            "highest_utility": self.highest_utility,
        }
        if sharding.rank() == 0:
            self._write(state)
        finished = time.monotonic()
        self.due = finished + max(SAVE_SECONDS, 20 * (finished - started))

    def _write(self, state: Mapping[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        building = self.path.with_suffix(f".{os.getpid()}")
        with building.open("wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
        building.replace(self.path)

    def keep_best(self, figures: Mapping[str, float], floor: float) -> None:
        """Keeps the parameters if no step has forgotten more without falling below the floor."""
        self.highest_utility = max(self.highest_utility, figures["utility"])
        if figures["utility"] >= floor and figures["probe_forget"] > self.best.get("probe_forget", -math.inf):
            parameters = {
                name: sharding.whole(parameter.detach()).to("cpu", copy=True)
                for name, parameter in self.parameters.items()
            }
            self.best = {"probe_forget": figures["probe_forget"], "parameters": parameters}

    def take_best(self, floor: float) -> None:
        """Puts the kept parameters back."""
        if not self.best:
            raise TrainingDiverged(
                f"utility_floor: no probed step kept {floor:g} of the base model's utility (the highest was "
                f"{self.highest_utility:.3g}); lower learning_rate, raise alpha, or probe more often"
            )
        self._set(self.best["parameters"])

    @torch.no_grad()
    def _set(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(sharding.piece(values[name], parameter))


def _in_one(value: Tensor) -> Tensor:
    return value if sharding.size() == 1 else sharding.whole(value).cpu()

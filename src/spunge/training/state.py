"""Parameters, moments and best step, which a checkpoint holds, and what names a training: not how it is resumed."""

from __future__ import annotations

import hashlib
import json
import math
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spunge.errors import TrainingDiverged
from spunge.training import sharding
from spunge.training.rows import Encoded
from spunge.training.settings import Tuning

_MOMENTS = ("exp_avg", "exp_avg_sq")


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


class TrainingState:
    """The parameters, the optimiser's moments, and the best step so far: what a training depends on as it goes."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        self.parameters = parameters
        self.optimizer = optimizer
        self.best: dict[str, Any] = {}
        """The most forgetful probed step that kept to the utility floor, and its parameters."""
        self.highest_utility = 0.0

    def content(self) -> dict[str, Any]:
        """Returns everything whole, for a checkpoint; all processes call this together."""
        optimizer = self.optimizer.state_dict()
        optimizer["state"] = {
            number: {**moments, **{name: _in_one(moments[name]) for name in _MOMENTS}}
            for number, moments in optimizer["state"].items()
        }
        return {
            "parameters": {name: _in_one(parameter.detach()) for name, parameter in self.parameters.items()},
            "optimizer": optimizer,
            "best": self.best,
            "highest_utility": self.highest_utility,
        }

    def load(self, content: Mapping[str, Any]) -> None:
        """Takes up a checkpoint's content."""
        self._set(content["parameters"])
        # AdamW numbers its state in the order of the parameters, which a resumed run makes in the same order.
        moments = content["optimizer"]["state"]
        for parameter, moment in zip(self.parameters.values(), moments.values(), strict=True):
            moment |= {name: sharding.piece(moment[name], parameter) for name in _MOMENTS}
        self.optimizer.load_state_dict(content["optimizer"])
        self.best, self.highest_utility = content["best"], content["highest_utility"]

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

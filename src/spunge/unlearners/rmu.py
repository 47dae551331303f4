"""Representation misdirection for unlearning: push forget activations towards a random vector, hold the others.

Li et al., "The WMDP Benchmark", 2024 (https://arxiv.org/abs/2403.03218).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from spunge.settings import SearchRange
from spunge.steering.settings import of_topic
from spunge.steering.unlearner import SteeredUnlearner


class RMU(SteeredUnlearner):
    """L = mean ‖h_θ(forget) − c·u‖²/d + α · mean ‖h_θ(retain) − h_θ₀(retain)‖²/d, at the output of layer ℓ."""

    method: Literal["rmu"] = "rmu"
    """Representation misdirection for unlearning."""
    steering_coefficient: Annotated[float | dict[str, float], SearchRange(1, 1000, log=True)] = 6.5
    """c: how long the vector is that forget activations are pushed to, usually two or three times their own length; one
    number, or one for every topic by its name."""

    @classmethod
    def _from_trial(cls, trial: dict[str, Any]) -> dict[str, Any]:
        return {**super()._from_trial(trial), "steering_coefficient": trial["steering_coefficient"]}

    def coefficient(self, topic: str, norm: float) -> float:
        return of_topic(self.steering_coefficient, topic, "steering_coefficient")

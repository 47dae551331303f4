"""Adaptive RMU: RMU whose steering coefficient follows from how long the model's own activations are.

Dang et al., "On Effects of Steering Latent Representation for Large Language Model Unlearning", 2024
(https://arxiv.org/abs/2408.06223).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from spunge.settings import SearchRange
from spunge.steering.unlearner import SteeredUnlearner


class AdaptiveRMU(SteeredUnlearner):
    """RMU with c = `scale` · mean ‖h_θ₀‖, measured for every topic on its first forget batch at layer ℓ."""

    method: Literal["adaptive_rmu"] = "adaptive_rmu"
    """RMU whose steering coefficient is measured."""
    scale: Annotated[float, SearchRange(1, 16, log=True)] = Field(default=5.0, gt=0)
    """How many times longer than the base model's activations the control vector is."""

    @classmethod
    def _from_trial(cls, trial: dict[str, Any]) -> dict[str, Any]:
        return {**super()._from_trial(trial), "scale": trial["ratio"]}

    def coefficient(self, topic: str, norm: float) -> float:
        return self.scale * norm

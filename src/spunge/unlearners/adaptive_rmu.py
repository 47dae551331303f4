"""Adaptive RMU: RMU whose steering coefficient follows from how long the model's own activations are.

Dang et al., "On Effects of Steering Latent Representation for Large Language Model Unlearning", 2024
(https://arxiv.org/abs/2408.06223).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from spunge.interfaces import Work
from spunge.rows.sources import Corpus
from spunge.steering.settings import SteeredUnlearner

if TYPE_CHECKING:
    from spunge.weights.language_model import LanguageModel
    from spunge.weights.task_vector import TaskVector


class AdaptiveRMU(SteeredUnlearner):
    """RMU with c = `scale` · mean ‖h_θ₀‖, measured for every topic on its first forget batch at layer ℓ."""

    method: Literal["adaptive_rmu"] = "adaptive_rmu"
    """RMU whose steering coefficient is measured."""
    scale: float = Field(default=5.0, gt=0)
    """How many times longer than the base model's activations the control vector is."""

    @classmethod
    def _from_trial(cls, trial: dict[str, Any]) -> dict[str, Any]:
        return {**super()._from_trial(trial), "scale": trial["ratio"]}

    def unlearn(self, base: LanguageModel, forget: Corpus, retain: Corpus | None, work: Work) -> TaskVector:
        """Returns the deltas of the updated matrices; leaves `metrics.jsonl` and `control_vectors.safetensors`.

        Raises:
            DataError: The retain set is missing, empty or smaller than a batch.
            ModelError: The architecture, the layer or the parameters are not to be had.
            TrainingDiverged: A loss or gradient became NaN or infinite.
        """
        from spunge.steering.loop import steer

        return steer(self, base, forget, retain, work, coefficient=lambda _, norm: self.scale * norm)

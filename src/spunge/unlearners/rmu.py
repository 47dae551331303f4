"""Representation misdirection for unlearning: push forget activations towards a random vector, hold the others.

Li et al., "The WMDP Benchmark", 2024 (https://arxiv.org/abs/2403.03218).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from spunge.interfaces import Work
from spunge.rows.sources import Corpus
from spunge.steering.settings import SteeredUnlearner, of_topic

if TYPE_CHECKING:
    from spunge.weights.language_model import LanguageModel
    from spunge.weights.task_vector import TaskVector


class RMU(SteeredUnlearner):
    """L = mean ‖h_θ(forget) − c·u‖²/d + α · mean ‖h_θ(retain) − h_θ₀(retain)‖²/d, at the output of layer ℓ."""

    method: Literal["rmu"] = "rmu"
    """Representation misdirection for unlearning."""
    steering_coefficient: float | dict[str, float] = 6.5
    """c: how long the vector is that forget activations are pushed to, usually two or three times their own length; one
    number, or one for every topic by its name."""

    @classmethod
    def _from_trial(cls, trial: dict[str, Any]) -> dict[str, Any]:
        return {**super()._from_trial(trial), "steering_coefficient": trial["steering_coefficient"]}

    def unlearn(self, base: LanguageModel, forget: Corpus, retain: Corpus | None, work: Work) -> TaskVector:
        """Returns the deltas of the updated matrices; leaves `metrics.jsonl` and `control_vectors.safetensors`.

        Raises:
            DataError: The retain set is missing, empty or smaller than a batch.
            ModelError: The architecture, the layer or the parameters are not to be had.
            TrainingDiverged: A loss or gradient became NaN or infinite.
        """
        from spunge.steering.loop import steer

        def coefficient(topic: str, _: float) -> float:
            return of_topic(self.steering_coefficient, topic, "steering_coefficient")

        return steer(self, base, forget, retain, work, coefficient=coefficient)

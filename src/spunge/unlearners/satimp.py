"""Saturation and importance: gradient ascent on the tokens that are neither forgotten yet nor trivial.

Yang et al. 2025, "Exploring criteria of loss reweighting to enhance LLM unlearning", arXiv 2505.11953:
−mean(p^β1 · (1 − p)^β2 · NLL), the weights detached.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from spunge.training.unlearner import ForgetAndRetain

if TYPE_CHECKING:
    from torch import Tensor

    from spunge.training.rows import Batch
    from spunge.training.trainee import Trainee


class SatImp(ForgetAndRetain):
    """Gradient ascent with every token weighted by saturation and importance."""

    method: Literal["satimp"] = "satimp"
    beta1: float = Field(default=5.0, ge=0)
    """β1, the power of p: larger lets go of forgotten tokens sooner (saturation)."""
    beta2: float = Field(default=1.0, ge=0)
    """β2, the power of 1 − p: larger passes over the tokens that follow from the context anyway (importance)."""
    gamma: float = Field(default=0.1, ge=0)
    """γ, the weight of the forget loss."""

    def forget_loss(self, trainee: Trainee, batch: Batch) -> Tensor:
        from spunge.training import losses

        return losses.satimp(trainee(batch), batch.labels, beta1=self.beta1, beta2=self.beta2)

"""Weighted gradient ascent: ascent that lets go of the tokens it has made unlikely.

Wang et al. 2025, "Rethinking LLM unlearning objectives: a gradient perspective and go beyond", arXiv 2502.19301:
−mean(p^β · NLL), the weights p^β detached.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from spunge.training.unlearner import ForgetAndRetain

if TYPE_CHECKING:
    from torch import Tensor

    from spunge.training.rows import Batch
    from spunge.training.trainee import Trainee


class WGA(ForgetAndRetain):
    """Gradient ascent with every token weighted by a power of its own likelihood."""

    method: Literal["wga"] = "wga"
    beta: float = Field(default=1.0, ge=0)
    """β, the power; 0 is gradient ascent."""

    def forget_loss(self, trainee: Trainee, batch: Batch) -> Tensor:
        from spunge.training import losses

        return losses.wga(trainee(batch), batch.labels, beta=self.beta)

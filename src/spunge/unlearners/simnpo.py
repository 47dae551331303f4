"""Simple negative preference optimisation: NPO by the likelihood of a token, without a reference model.

Fan et al. 2024, "Simplicity prevails: rethinking negative preference optimization for LLM unlearning", arXiv
2410.07163: −(2/β) · log σ(β · (NLL / length − δ)).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from spunge.settings import SearchRange
from spunge.training.unlearner import ForgetAndRetain

if TYPE_CHECKING:
    from torch import Tensor

    from spunge.training.rows import Batch
    from spunge.training.trainee import Trainee


class SimNPO(ForgetAndRetain):
    """Pushes every forget text's mean token likelihood down, the likely ones hardest."""

    per: ClassVar[Literal["token", "sequence"]] = "sequence"

    method: Literal["simnpo"] = "simnpo"
    beta: Annotated[float, SearchRange(1, 10, log=True, first=4.5)] = Field(default=4.5, gt=0)
    """β, the inverse temperature."""
    delta: float = Field(default=0.0, ge=0)
    """δ, the mean negative log-likelihood beyond which the push weakens; the paper's margin γ is β · δ."""
    gamma: float = Field(default=0.125, ge=0)
    """γ, the weight of the forget loss."""

    def forget_loss(self, trainee: Trainee, batch: Batch) -> Tensor:
        from spunge.training import losses

        return losses.simnpo(trainee(batch), batch.labels, batch.lengths, beta=self.beta, delta=self.delta)

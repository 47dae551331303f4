"""Negative preference optimisation: gradient ascent that slows down as a text becomes unlikely.

Zhang et al. 2024, "Negative preference optimization: from catastrophic collapse to effective unlearning", arXiv
2404.05868: −(2/β) · log σ(−β · log(p / p_base)), with p of the whole counted text.
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


class NPO(ForgetAndRetain):
    """Treats forget texts as answers that lost, with no answer that won."""

    per: ClassVar[Literal["token", "sequence"]] = "sequence"

    method: Literal["npo"] = "npo"
    beta: Annotated[float, SearchRange(0.02, 1, log=True, first=0.1)] = Field(default=0.1, gt=0)
    """β, the inverse temperature: larger stops sooner; towards 0 it is gradient ascent."""

    def forget_loss(self, trainee: Trainee, batch: Batch) -> Tensor:
        from spunge.training import losses

        base_log_probs = trainee.base_log_probs(batch)
        log_probs = losses.sequence_log_probs(trainee(batch), batch.labels, batch.lengths)
        return losses.npo(log_probs, base_log_probs, beta=self.beta)

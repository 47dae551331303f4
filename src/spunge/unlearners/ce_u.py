"""Cross-entropy unlearning: learn the model's own distribution without the label.

Yang 2025, "CE-U: cross entropy unlearning", arXiv 2503.01224: cross-entropy against the softmax of the model's logits
with the label's at −∞. It neither vanishes where the model is sure nor explodes where it is not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from spunge.settings import SearchRange
from spunge.training.unlearner import ForgetAndRetain

if TYPE_CHECKING:
    from torch import Tensor

    from spunge.training.rows import Batch
    from spunge.training.trainee import Trainee


class CEU(ForgetAndRetain):
    """Distils the model's own distributions with the labels ruled out."""

    method: Literal["ce_u"] = "ce_u"
    alpha: Annotated[float, SearchRange(0.1, 10, log=True)] = Field(default=0.0, ge=0)
    """α, the weight of the retain loss; the paper does without."""

    def forget_loss(self, trainee: Trainee, batch: Batch) -> Tensor:
        from spunge.training import losses

        return losses.ce_u(trainee(batch), batch.labels)

"""Unlearning by self-distillation on adjusted logits: learn the base's own answer with the label made unlikely.

Dong et al. 2024, "UNDIAL: self-distillation with adjusted logits for robust unlearning in large language models",
arXiv 2402.10052: cross-entropy against softmax(base logits − β · onehot(label)). A fixed target: it does not diverge.
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


class UNDIAL(ForgetAndRetain):
    """Distils the base model's distributions with the labels' logits lowered."""

    method: Literal["undial"] = "undial"
    beta: Annotated[float, SearchRange(3, 30, log=True)] = Field(default=10.0, gt=0)
    """β, how far the label's logit is lowered."""
    alpha: Annotated[float, SearchRange(0.1, 10, log=True)] = Field(default=0.0, ge=0)
    """α, the weight of the retain loss; the paper does without."""

    def forget_loss(self, trainee: Trainee, batch: Batch) -> Tensor:
        from spunge.training import losses

        base_logits = trainee.base_logits(batch)
        return losses.undial(trainee(batch), base_logits, batch.labels, beta=self.beta)

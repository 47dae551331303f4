"""Gradient difference: climb the forget set's loss while descending the retain set's.

Liu et al. 2022, "Continual learning and private unlearning", arXiv 2203.12817, and, as a baseline of TOFU, Maini et al.
2024, arXiv 2401.06121: α · NLL(retain) − γ · NLL(forget). Nothing bounds the second term: few steps, or
`combine: sago`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from spunge.training.unlearner import ForgetAndRetain

if TYPE_CHECKING:
    from torch import Tensor

    from spunge.training.rows import Batch
    from spunge.training.trainee import Trainee


class GradientDifference(ForgetAndRetain):
    """Unlikely forget texts, likely retain texts."""

    method: Literal["gradient_difference"] = "gradient_difference"

    def forget_loss(self, trainee: Trainee, batch: Batch) -> Tensor:
        from spunge.training import losses

        return -losses.cross_entropy(trainee(batch), batch.labels)

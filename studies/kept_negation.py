"""Task vector negation that keeps the rest where it is while it learns what must go: a method of a study's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from spunge.training.unlearner import ForgetAndRetain

if TYPE_CHECKING:
    from torch import Tensor

    from spunge.training.rows import Batch
    from spunge.training.trainee import Trainee


class KeptNegation(ForgetAndRetain):
    """Fine-tunes on the forget set, held to the base model on the retain set, and subtracts what that changed.

    KL(base ‖ θ) has its minimum at the base, so what it holds at θ + τ is held at θ − τ too, up to the third order.
    """

    scaled_by: ClassVar[str | None] = "lambda_"

    lambda_: float = Field(default=1.0, alias="lambda", ge=0)
    """λ, how much of the task vector is subtracted."""
    retain_loss: Literal["nll", "kl"] = "kl"
    """As everywhere; held to the base model by default."""

    def forget_loss(self, trainee: Trainee, batch: Batch) -> Tensor:
        """Returns the forget set's negative log-likelihood: what must go is learnt first."""
        from spunge.training import losses

        return losses.cross_entropy(trainee(batch), batch.labels)

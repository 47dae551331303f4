"""Task vector negation: learn what must go, then subtract it.

Ilharco et al. 2022, "Editing models with task arithmetic", arXiv 2212.04089, "forgetting via negation":
τ = θ_fine-tuned − θ_base on the forget set, and the unlearned model is θ_base − λ·τ. With LoRA, τ of a weight is
(α/r)·B·A (Zhang et al. 2023, "Composing parameter-efficient modules with arithmetic operations", arXiv 2306.14870).
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from spunge.training.unlearner import TrainedUnlearner

if TYPE_CHECKING:
    from spunge.rows.sources import Corpus
    from spunge.training.loop import Objective
    from spunge.training.trainee import Trainee


class TaskVectorNegation(TrainedUnlearner):
    """Fine-tunes on the forget set and subtracts what that changed; needs no retain set.

    What `unlearn` returns is τ as trained; who reads it multiplies it by −λ (`interfaces.scale_of`).
    """

    scaled_by: ClassVar[str | None] = "lambda_"

    method: Literal["task_vector_negation"] = "task_vector_negation"
    lambda_: float = Field(default=1.0, alias="lambda", ge=0)
    """λ, how much of the task vector is subtracted. It is applied when the result is read: a sweep trains once."""

    # It stays a field, and False, because the store's keys hold it: task vectors that were trained apart are found.
    together: bool = False
    """Does nothing, and may stand in old recipes: it trained the LoRAs of several subsets in one pass of the base."""

    @field_validator("together", mode="before")
    @classmethod
    def _apart(cls, wish: Any) -> bool:
        if wish:
            warnings.warn("together: there is no such thing any more; every subset is trained apart", stacklevel=2)
        return False

    def objective(self, trainee: Trainee, forget: Corpus, retain: Corpus | None) -> Objective:
        """Returns the forget set's negative log-likelihood: what must go is learnt first."""
        from spunge.training.finetuning import say

        return say(trainee, forget)

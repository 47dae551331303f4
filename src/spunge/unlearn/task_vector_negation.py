"""Task vector negation: learn what must go, then subtract it.

Ilharco et al. 2022, "Editing models with task arithmetic", arXiv 2212.04089, section 3: τ = θ_fine-tuned − θ_base on
the forget set, and the unlearned model is θ_base − λ·τ. With LoRA, τ of a weight is (α/r)·B·A (Zhang et al. 2023,
"Composing parameter-efficient modules with arithmetic operations", arXiv 2306.14870).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from spunge.interfaces import Unlearner, Work
from spunge.tuning import Tuning

if TYPE_CHECKING:
    from spunge.data import Corpus
    from spunge.language_model import LanguageModel
    from spunge.task_vector import TaskVector


class TaskVectorNegation(Tuning, Unlearner):
    """Fine-tunes on the forget set and subtracts what that changed; needs no retain set."""

    scaled_by: ClassVar[str | None] = "lambda_"

    method: Literal["task_vector_negation"] = "task_vector_negation"
    lambda_: float = Field(default=1.0, alias="lambda", ge=0)
    """λ, how much of the task vector is subtracted. It is applied when the result is read: a sweep trains once."""

    def unlearn(self, base: LanguageModel, forget: Corpus, retain: Corpus | None, work: Work) -> TaskVector:
        """Returns τ as trained; who reads it multiplies it by −λ (`interfaces.scale_of`)."""
        from spunge import training

        return training.learn(self, base, forget, work)

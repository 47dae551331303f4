"""Task vector negation: learn what must go, then subtract it.

Ilharco et al. 2022, "Editing models with task arithmetic", arXiv 2212.04089, "forgetting via negation":
τ = θ_fine-tuned − θ_base on the forget set, and the unlearned model is θ_base − λ·τ. With LoRA, τ of a weight is
(α/r)·B·A (Zhang et al. 2023, "Composing parameter-efficient modules with arithmetic operations", arXiv 2306.14870).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from spunge.interfaces import Unlearner, Work
from spunge.training.settings import Tuning

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spunge.rows.sources import Corpus
    from spunge.weights.language_model import LanguageModel
    from spunge.weights.task_vector import TaskVector


class TaskVectorNegation(Tuning, Unlearner):
    """Fine-tunes on the forget set and subtracts what that changed; needs no retain set."""

    scaled_by: ClassVar[str | None] = "lambda_"

    method: Literal["task_vector_negation"] = "task_vector_negation"
    lambda_: float = Field(default=1.0, alias="lambda", ge=0)
    """λ, how much of the task vector is subtracted. It is applied when the result is read: a sweep trains once."""

    together: bool | None = None
    """Train the LoRAs of all subsets at once, in one pass of the base: the same result but for rounding. Null does so
    where a batch has no more than 2000 characters, where it was measured to pay. There must be no dropout."""

    @model_validator(mode="after")
    def _what_can_be_trained_together(self) -> TaskVectorNegation:
        if self.together and (self.lora is None or self.lora.dropout or self.quantize):
            raise ValueError("together: needs a LoRA with dropout 0 on a base that is not quantized")
        return self

    def joins(self, forget: Corpus) -> bool:
        """Whether these rows are short enough, or it is wished."""
        if self.lora is None or self.lora.dropout or self.quantize:
            return False
        short = self.batch_size * sum(len(text) for text in forget.texts) <= 2000 * len(forget)
        return short if self.together is None else self.together

    def unlearn_together(
        self, base: LanguageModel, forgets: Sequence[Corpus], works: Sequence[Work]
    ) -> list[TaskVector]:
        """Returns each subset's τ."""
        from spunge.training.together import learn_together

        return learn_together(self, base, forgets, works)

    def unlearn(self, base: LanguageModel, forget: Corpus, retain: Corpus | None, work: Work) -> TaskVector:
        """Returns τ as trained; who reads it multiplies it by −λ (`interfaces.scale_of`)."""
        from spunge.training.goals import learn

        return learn(self, base, forget, work)

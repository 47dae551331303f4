"""Task vector negation: learn what must go, then subtract it.

Ilharco et al. 2022, "Editing models with task arithmetic", arXiv 2212.04089, "forgetting via negation":
τ = θ_fine-tuned − θ_base on the forget set, and the unlearned model is θ_base − λ·τ. With LoRA, τ of a weight is
(α/r)·B·A (Zhang et al. 2023, "Composing parameter-efficient modules with arithmetic operations", arXiv 2306.14870).

With a retain set (`alpha`), τ is learnt while held to the base model on it: NLL(forget) + α · KL(base ‖ θ)(retain). The
divergence has its minimum at the base, so what it holds at θ + τ is held at θ − τ too, up to the third order in τ.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from spunge.settings import SearchRange
from spunge.training.unlearner import TrainedUnlearner

if TYPE_CHECKING:
    from spunge.rows.sources import Corpus
    from spunge.training.loop import Objective
    from spunge.training.trainee import Trainee


class TaskVectorNegation(TrainedUnlearner):
    """Fine-tunes on the forget set and subtracts what that changed; with `alpha`, held to the base on the retain set.

    What `unlearn` returns is τ as trained; who reads it multiplies it by −λ (`interfaces.scale_of`).
    """

    scaled_by: ClassVar[str | None] = "lambda_"
    unkeyed_default: ClassVar[frozenset[str]] = frozenset({"alpha"})

    method: Literal["task_vector_negation"] = "task_vector_negation"
    lambda_: float = Field(default=1.0, alias="lambda", ge=0)
    """λ, how much of the task vector is subtracted. It is applied when the result is read: a sweep trains once."""

    alpha: Annotated[float, SearchRange(0.1, 10, log=True, first=1)] = Field(default=0.0, ge=0)
    """α, the weight of KL(base ‖ model) on the retain set while τ is learnt; at 0 no retain set is needed. On ToxiGen 1
    removed more at the same damage than 0, in twice the time (docs/study.md)."""

    # It stays a field, and False, because the store's keys hold it: task vectors that were trained apart are found.
    together: bool = False
    """Does nothing, and may stand in old recipes: it trained the LoRAs of several subsets in one pass of the base."""

    @field_validator("together", mode="before")
    @classmethod
    def _apart(cls, wish: Any) -> bool:
        if wish:
            warnings.warn("together: there is no such thing any more; every subset is trained apart", stacklevel=2)
        return False

    @property
    def needs_retain(self) -> bool:
        """Whether the rest is held while τ is learnt."""
        return bool(self.alpha)

    def objective(self, trainee: Trainee, forget: Corpus, retain: Corpus | None) -> Objective:
        """Returns NLL(forget), as what must go is learnt first, + α · KL(base ‖ model)(retain)."""
        from spunge.training.finetuning import say
        from spunge.training.loop import Objective, Term

        learnt = say(trainee, forget)
        if not self.alpha:
            return learnt
        assert retain is not None
        held = Term("retain", trainee.encode(retain), trainee.kl_to_base, self.alpha)
        return Objective((*learnt.terms, held))

"""Saturation and importance: gradient ascent on the tokens that are neither forgotten yet nor trivial.

Yang et al. 2025, "Exploring criteria of loss reweighting to enhance LLM unlearning", arXiv 2505.11953:
−mean(p^β1 · (1 − p)^β2 · NLL), the weights detached.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from spunge.interfaces import Unlearner, Work
from spunge.training.settings import ForgetAndRetain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from spunge.rows.sources import Corpus
    from spunge.training.rows import Batch, Encoded
    from spunge.training.trainee import Trainee
    from spunge.weights.language_model import LanguageModel
    from spunge.weights.task_vector import TaskVector


class SatImp(ForgetAndRetain, Unlearner):
    """Gradient ascent with every token weighted by saturation and importance."""

    method: Literal["satimp"] = "satimp"
    beta1: float = Field(default=5.0, ge=0)
    """β1, the power of p: larger lets go of forgotten tokens sooner (saturation)."""
    beta2: float = Field(default=1.0, ge=0)
    """β2, the power of 1 − p: larger passes over the tokens that follow from the context anyway (importance)."""
    gamma: float = Field(default=0.1, ge=0)
    """γ, the weight of the forget loss."""

    def unlearn(self, base: LanguageModel, forget: Corpus, retain: Corpus | None, work: Work) -> TaskVector:
        """Returns trained minus base."""
        from spunge.training import losses
        from spunge.training.goals import forget_and_retain

        def forgetting(trainee: Trainee, rows: Sequence[Encoded]) -> Callable[[Batch], Tensor]:
            return lambda batch: losses.satimp(trainee(batch), batch.labels, beta1=self.beta1, beta2=self.beta2)

        return forget_and_retain(self, base, forget, retain, work, forgetting)

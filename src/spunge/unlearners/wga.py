"""Weighted gradient ascent: ascent that lets go of the tokens it has made unlikely.

Wang et al. 2025, "Rethinking LLM unlearning objectives: a gradient perspective and go beyond", arXiv 2502.19301:
−mean(p^β · NLL), the weights p^β detached.
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


class WGA(ForgetAndRetain, Unlearner):
    """Gradient ascent with every token weighted by a power of its own likelihood."""

    method: Literal["wga"] = "wga"
    beta: float = Field(default=1.0, ge=0)
    """β, the power; 0 is gradient ascent."""

    def unlearn(self, base: LanguageModel, forget: Corpus, retain: Corpus | None, work: Work) -> TaskVector:
        """Returns trained minus base."""
        from spunge.training import losses
        from spunge.training.goals import forget_and_retain

        def forgetting(trainee: Trainee, rows: Sequence[Encoded]) -> Callable[[Batch], Tensor]:
            return lambda batch: losses.wga(trainee(batch), batch.labels, beta=self.beta)

        return forget_and_retain(self, base, forget, retain, work, forgetting)

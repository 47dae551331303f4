"""Simple negative preference optimisation: NPO by the likelihood of a token, without a reference model.

Fan et al. 2024, "Simplicity prevails: rethinking negative preference optimization for LLM unlearning", arXiv
2410.07163: −(2/β) · log σ(β · (NLL / length − δ)).
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


class SimNPO(ForgetAndRetain, Unlearner):
    """Pushes every forget text's mean token likelihood down, the likely ones hardest."""

    method: Literal["simnpo"] = "simnpo"
    beta: float = Field(default=4.5, gt=0)
    """β, the inverse temperature."""
    delta: float = Field(default=0.0, ge=0)
    """δ, the mean negative log-likelihood beyond which the push weakens; the paper's margin γ is β · δ."""
    gamma: float = Field(default=0.125, ge=0)
    """γ, the weight of the forget loss."""

    def unlearn(self, base: LanguageModel, forget: Corpus, retain: Corpus | None, work: Work) -> TaskVector:
        """Returns trained minus base."""
        from spunge.training import losses
        from spunge.training.goals import forget_and_retain

        def forgetting(trainee: Trainee, rows: Sequence[Encoded]) -> Callable[[Batch], Tensor]:
            return lambda batch: losses.simnpo(trainee(batch), batch.labels, beta=self.beta, delta=self.delta)

        return forget_and_retain(self, base, forget, retain, work, forgetting, per="sequence")

"""Negative preference optimisation: gradient ascent that slows down as a text becomes unlikely.

Zhang et al. 2024, "Negative preference optimization: from catastrophic collapse to effective unlearning", arXiv
2404.05868: −(2/β) · log σ(−β · log(p / p_base)), with p of the whole counted text.
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


class NPO(ForgetAndRetain, Unlearner):
    """Treats forget texts as answers that lost, with no answer that won."""

    method: Literal["npo"] = "npo"
    beta: float = Field(default=0.1, gt=0)
    """β, the inverse temperature: larger stops sooner; towards 0 it is gradient ascent."""

    def unlearn(self, base: LanguageModel, forget: Corpus, retain: Corpus | None, work: Work) -> TaskVector:
        """Returns trained minus base."""
        from spunge.training import losses
        from spunge.training.goals import forget_and_retain

        def forgetting(trainee: Trainee, rows: Sequence[Encoded]) -> Callable[[Batch], Tensor]:
            base_log_probs = trainee.base_log_probs(rows)

            def loss(batch: Batch) -> Tensor:
                log_probs = losses.sequence_log_probs(trainee(batch), batch.labels)
                return losses.npo(log_probs, base_log_probs[batch.indices], beta=self.beta)

            return loss

        return forget_and_retain(self, base, forget, retain, work, forgetting, per="sequence")

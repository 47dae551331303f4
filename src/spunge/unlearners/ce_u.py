"""Cross-entropy unlearning: learn the model's own distribution without the label.

Yang 2025, "CE-U: cross entropy unlearning", arXiv 2503.01224: cross-entropy against the softmax of the model's logits
with the label's at −∞. It neither vanishes where the model is sure nor explodes where it is not.
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


class CEU(ForgetAndRetain, Unlearner):
    """Distils the model's own distributions with the labels ruled out."""

    method: Literal["ce_u"] = "ce_u"
    alpha: float = Field(default=0.0, ge=0)
    """α, the weight of the retain loss; the paper does without."""

    def unlearn(self, base: LanguageModel, forget: Corpus, retain: Corpus | None, work: Work) -> TaskVector:
        """Returns trained minus base."""
        from spunge.training import losses
        from spunge.training.goals import forget_and_retain

        def forgetting(trainee: Trainee, rows: Sequence[Encoded]) -> Callable[[Batch], Tensor]:
            return lambda batch: losses.ce_u(trainee(batch), batch.labels)

        return forget_and_retain(self, base, forget, retain, work, forgetting)

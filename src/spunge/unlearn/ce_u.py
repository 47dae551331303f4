"""Cross-entropy unlearning: learn the model's own distribution without the label.

Yang 2025, "CE-U: cross entropy unlearning", arXiv 2503.01224: cross-entropy against the softmax of the model's logits
with the label's at −∞. It neither vanishes where the model is sure nor explodes where it is not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from spunge.interfaces import Unlearner, Work
from spunge.tuning import ForgetAndRetain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from spunge.data import Corpus
    from spunge.language_model import LanguageModel
    from spunge.task_vector import TaskVector
    from spunge.training import Batch, Encoded, Trainee


class CEU(ForgetAndRetain, Unlearner):
    """Distils the model's own distributions with the labels ruled out."""

    method: Literal["ce_u"] = "ce_u"
    alpha: float = Field(default=0.0, ge=0)
    """α, the weight of the retain loss; the paper does without."""

    def unlearn(self, base: LanguageModel, forget: Corpus, retain: Corpus | None, work: Work) -> TaskVector:
        """Returns trained minus base."""
        from spunge import losses, training

        def forgetting(trainee: Trainee, rows: Sequence[Encoded]) -> Callable[[Batch], Tensor]:
            return lambda batch: losses.ce_u(trainee(batch), batch.labels)

        return training.forget_and_retain(self, base, forget, retain, work, forgetting)

"""Gradient difference: climb the forget set's loss while descending the retain set's.

Liu et al. 2022, "Continual learning and private unlearning", arXiv 2203.12817, and, as a baseline of TOFU, Maini et al.
2024, arXiv 2401.06121: α · NLL(retain) − γ · NLL(forget). Nothing bounds the second term: few steps, or
`combine: sago`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

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


class GradientDifference(ForgetAndRetain, Unlearner):
    """Unlikely forget texts, likely retain texts."""

    method: Literal["gradient_difference"] = "gradient_difference"

    def unlearn(self, base: LanguageModel, forget: Corpus, retain: Corpus | None, work: Work) -> TaskVector:
        """Returns trained minus base."""
        from spunge.training import losses
        from spunge.training.goals import forget_and_retain

        def forgetting(trainee: Trainee, rows: Sequence[Encoded]) -> Callable[[Batch], Tensor]:
            return lambda batch: -losses.cross_entropy(trainee(batch), batch.labels)

        return forget_and_retain(self, base, forget, retain, work, forgetting)

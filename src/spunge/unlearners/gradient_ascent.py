"""Gradient ascent: climb the forget set's loss, and nothing else.

Jang et al. 2022, "Knowledge unlearning for mitigating privacy risks in language models", arXiv 2210.01504:
−NLL(forget). Here as the baseline that others are measured against: it has no bound and wrecks the model in the end.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Literal

from spunge.interfaces import Unlearner, Work
from spunge.training.settings import Tuning

if TYPE_CHECKING:
    from spunge.rows.sources import Corpus
    from spunge.weights.language_model import LanguageModel
    from spunge.weights.task_vector import TaskVector


class GradientAscent(Tuning, Unlearner):
    """Makes forget texts unlikely without regard to anything else."""

    method: Literal["gradient_ascent"] = "gradient_ascent"

    def unlearn(self, base: LanguageModel, forget: Corpus, retain: Corpus | None, work: Work) -> TaskVector:
        """Returns trained minus base."""
        from spunge.training import losses
        from spunge.training.loop import Term, train
        from spunge.training.trainee import borrow

        warnings.warn(
            "gradient_ascent has no bound and soon wrecks the model: keep it to few steps, "
            "or use npo, simnpo or gradient_difference with combine=sago",
            stacklevel=2,
        )
        with borrow(self, base, work) as trainee:
            rows = trainee.encode(forget)
            ascent = Term("forget", rows, lambda batch: -losses.cross_entropy(trainee(batch), batch.labels))
            return train(trainee, [ascent], work)

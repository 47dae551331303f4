"""Gradient ascent: climb the forget set's loss, and nothing else.

Jang et al. 2022, "Knowledge unlearning for mitigating privacy risks in language models", arXiv 2210.01504:
−NLL(forget). Here as the baseline that others are measured against: it has no bound and wrecks the model in the end.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Literal

from spunge.training.unlearner import TrainedUnlearner

if TYPE_CHECKING:
    from spunge.rows.sources import Corpus
    from spunge.training.loop import Objective
    from spunge.training.trainee import Trainee


class GradientAscent(TrainedUnlearner):
    """Makes forget texts unlikely without regard to anything else."""

    method: Literal["gradient_ascent"] = "gradient_ascent"

    def objective(self, trainee: Trainee, forget: Corpus, retain: Corpus | None) -> Objective:
        """Returns the forget set's likelihood, to be driven down."""
        from spunge.training import losses
        from spunge.training.loop import Objective, Term

        warnings.warn(
            "gradient_ascent has no bound and soon wrecks the model: keep it to few steps, "
            "or use npo, simnpo or gradient_difference with combine=sago",
            stacklevel=2,
        )
        rows = trainee.encode(forget)
        return Objective((Term("forget", rows, lambda batch: -losses.cross_entropy(trainee(batch), batch.labels)),))

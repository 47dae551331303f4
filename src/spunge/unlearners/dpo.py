"""Direct preference optimisation: prefer another answer to the one that must go.

Rafailov et al. 2023, arXiv 2305.18290, equation 7, as an unlearner in Zhang et al. 2024 (NPO), arXiv 2404.05868, and
Maini et al. 2024 (TOFU), arXiv 2401.06121:
−(2/β) · log σ(β · [log(p / p_base)(alternative) − log(p / p_base)(original)]).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from spunge.errors import DataError
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

REFUSALS = (
    "I don't know.",
    "I'm not sure about that.",
    "I have no information on this.",
    "That is something I cannot answer.",
    "I'm afraid I don't know the answer.",
    "Sorry, I can't help with this question.",
)


class DPO(ForgetAndRetain, Unlearner):
    """Prefers the `alternative` of every forget row to its `response`."""

    method: Literal["dpo"] = "dpo"
    beta: float = Field(default=0.1, gt=0)
    """β, the inverse temperature."""

    def unlearn(self, base: LanguageModel, forget: Corpus, retain: Corpus | None, work: Work) -> TaskVector:
        """Returns trained minus base."""
        if "alternative" not in forget.rows.columns:
            raise DataError(
                "dpo needs a column 'alternative', the answer to give instead; "
                f"columns are {', '.join(forget.rows.columns)}; use idk_dpo to prefer not knowing"
            )
        return _prefer(self, self.beta, base, forget, retain, work)


class IdkDPO(ForgetAndRetain, Unlearner):
    """Prefers not knowing to the `response` of every forget row."""

    method: Literal["idk_dpo"] = "idk_dpo"
    beta: float = Field(default=0.1, gt=0)
    """β, the inverse temperature."""
    refusals: tuple[str, ...] = Field(default=REFUSALS, min_length=1)
    """What to say instead; the rows take them in turn."""

    def unlearn(self, base: LanguageModel, forget: Corpus, retain: Corpus | None, work: Work) -> TaskVector:
        """Returns trained minus base."""
        import polars as pl

        from spunge.rows.sources import Corpus

        refusals = [self.refusals[row % len(self.refusals)] for row in range(len(forget))]
        answered = Corpus(forget.rows.with_columns(pl.Series("alternative", refusals)))
        return _prefer(self, self.beta, base, answered, retain, work)


def _prefer(
    settings: ForgetAndRetain, beta: float, base: LanguageModel, forget: Corpus, retain: Corpus | None, work: Work
) -> TaskVector:
    from spunge.rows.sources import Corpus
    from spunge.training import losses
    from spunge.training.goals import forget_and_retain

    # A whole text beside prompt and response would be taken for what to forget; here the prompt must stand apart.
    forget = Corpus(forget.rows.drop("text", strict=False))

    def forgetting(trainee: Trainee, rows: Sequence[Encoded]) -> Callable[[Batch], Tensor]:
        alternatives = trainee.encode(forget, response="alternative")
        base_log_probs = trainee.base_log_probs(rows)
        base_alternative_log_probs = trainee.base_log_probs(alternatives)

        def loss(batch: Batch) -> Tensor:
            other = trainee.collate(alternatives, batch.indices)
            return losses.dpo(
                losses.sequence_log_probs(trainee(batch), batch.labels),
                base_log_probs[batch.indices],
                losses.sequence_log_probs(trainee(other), other.labels),
                base_alternative_log_probs[batch.indices],
                beta=beta,
            )

        return loss

    return forget_and_retain(settings, base, forget, retain, work, forgetting, per="sequence")

"""Direct preference optimisation: prefer another answer to the one that must go.

Rafailov et al. 2023, arXiv 2305.18290, equation 7, as an unlearner in Zhang et al. 2024 (NPO), arXiv 2404.05868, and
Maini et al. 2024 (TOFU), arXiv 2401.06121:
−(2/β) · log σ(β · [log(p / p_base)(alternative) − log(p / p_base)(original)]).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from spunge.errors import DataError
from spunge.training.unlearner import ForgetAndRetain

if TYPE_CHECKING:
    from torch import Tensor

    from spunge.rows.sources import Corpus
    from spunge.training.rows import Batch
    from spunge.training.trainee import Trainee

REFUSALS = (
    "I don't know.",
    "I'm not sure about that.",
    "I have no information on this.",
    "That is something I cannot answer.",
    "I'm afraid I don't know the answer.",
    "Sorry, I can't help with this question.",
)


class DPO(ForgetAndRetain):
    """Prefers the `alternative` of every forget row to its `response`."""

    per: ClassVar[Literal["token", "sequence"]] = "sequence"

    method: Literal["dpo"] = "dpo"
    beta: float = Field(default=0.1, gt=0)
    """β, the inverse temperature."""

    def forget_rows(self, forget: Corpus) -> Corpus:
        if "alternative" not in forget.rows.columns:
            raise DataError(
                "dpo needs a column 'alternative', the answer to give instead; "
                f"columns are {', '.join(forget.rows.columns)}; use idk_dpo to prefer not knowing"
            )
        return _without_text(forget)

    def forget_loss(self, trainee: Trainee, batch: Batch) -> Tensor:
        return _prefer_alternative(trainee, batch, self.beta)


class IdkDPO(ForgetAndRetain):
    """Prefers not knowing to the `response` of every forget row."""

    per: ClassVar[Literal["token", "sequence"]] = "sequence"

    method: Literal["idk_dpo"] = "idk_dpo"
    beta: float = Field(default=0.1, gt=0)
    """β, the inverse temperature."""
    refusals: tuple[str, ...] = Field(default=REFUSALS, min_length=1)
    """What to say instead; the rows take them in turn."""

    def forget_rows(self, forget: Corpus) -> Corpus:
        import polars as pl

        from spunge.rows.sources import Corpus

        refusals = [self.refusals[row % len(self.refusals)] for row in range(len(forget))]
        return _without_text(Corpus(forget.rows.with_columns(pl.Series("alternative", refusals))))

    def forget_loss(self, trainee: Trainee, batch: Batch) -> Tensor:
        return _prefer_alternative(trainee, batch, self.beta)


def _without_text(forget: Corpus) -> Corpus:
    """A whole text beside prompt and response would be taken for what to forget; here the prompt must stand apart."""
    from spunge.rows.sources import Corpus

    return Corpus(forget.rows.drop("text", strict=False))


def _prefer_alternative(trainee: Trainee, batch: Batch, beta: float) -> Tensor:
    from spunge.training import losses

    other = trainee.answered(batch, "alternative")
    base_log_probs, base_other_log_probs = trainee.base_log_probs(batch), trainee.base_log_probs(other)
    return losses.dpo(
        losses.sequence_log_probs(trainee(batch), batch.labels, batch.lengths),
        base_log_probs,
        losses.sequence_log_probs(trainee(other), other.labels, other.lengths),
        base_other_log_probs,
        beta=beta,
    )

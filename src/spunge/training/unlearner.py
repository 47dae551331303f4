"""Unlearners that train through the logits: they say what to minimise, the loop does the rest."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from spunge.errors import DataError
from spunge.interfaces import Forecast, Unlearner, Work, longer, require_retain
from spunge.settings import SearchChoice, SearchRange
from spunge.training.settings import Tuning

if TYPE_CHECKING:
    from torch import Tensor

    from spunge.rows.sources import Corpus
    from spunge.training.loop import Objective
    from spunge.training.rows import Batch, Encoded
    from spunge.training.trainee import Trainee
    from spunge.weights.language_model import LanguageModel
    from spunge.weights.task_vector import TaskVector


class TrainedUnlearner(Tuning, Unlearner):
    """An unlearner that trains through the logits: it says what to minimise."""

    unkeyed_default: ClassVar[frozenset[str]] = frozenset({"sharpness"})

    sharpness: float = Field(default=0.0, ge=0)
    """ρ of sharpness-aware minimisation against relearning (Foret et al. 2020, arXiv 2010.01412; of unlearning Fan et
    al. 2025, arXiv 2502.05374): the forget loss's gradient is taken where that loss is highest within this distance of
    the weights, to first order, so that what is forgotten stays so around them; a step costs one more pass. 0: off."""

    @abstractmethod
    def objective(self, trainee: Trainee, forget: Corpus, retain: Corpus | None) -> Objective:
        """Returns what to minimise; `retain` is there if `needs_retain` says so."""

    def unlearn(self, base: LanguageModel, forget: Corpus, retain: Corpus | None, work: Work) -> TaskVector:
        """Returns trained minus base.

        Raises:
            DataError: The method needs a retain set and has none, or the rows lack what it needs.
            TrainingDiverged: The loss became NaN or infinite.
        """
        from spunge.training.loop import train
        from spunge.training.trainee import borrow

        require_retain(self, retain)
        with borrow(self, base, work) as trainee:
            objective = self.objective(trainee, forget, retain)
            return train(trainee, replace(objective, sharpness=self.sharpness), work)

    def forecast(self, base: LanguageModel, forget: Corpus, retain: Corpus | None, work: Work) -> Forecast:
        """Says what training takes; a retain set counts where the method needs one.

        Raises:
            DataError: The method needs a retain set and has none.
        """
        from spunge.training.forecast import forecast_training

        require_retain(self, retain)
        retain = retain if self.needs_retain else None
        forecast = forecast_training(self, base, forget, retain)
        if not self.sharpness:
            return forecast
        times = 2 if retain is None else 1.5  # once more through the forget batch; the retain batch is as large
        assert forecast.operations is not None
        return replace(forecast, operations=times * forecast.operations, calls=round(times * forecast.calls))

    def lengthened(self, steps: int, *, taken: int) -> TrainedUnlearner:
        """Returns this method with so many steps, over as many epochs as they need."""
        return self.model_copy(update=longer(steps, taken, self.epochs))


class ForgetAndRetain(TrainedUnlearner):
    """What methods share that weigh a forget loss against a retain loss: γ · forget + α · retain.

    A method says `forget_loss`, and is done.
    """

    per: ClassVar[Literal["token", "sequence"]] = "token"
    """What the forget loss is a mean over; it says how much each batch of an accumulated step weighs."""

    gamma: float = Field(default=1.0, ge=0)
    """γ, the weight of the forget loss."""
    alpha: Annotated[float, SearchRange(0.1, 10, log=True)] = Field(default=1.0, ge=0)
    """α, the weight of the retain loss; at 0 no retain set is needed."""
    retain_loss: Annotated[Literal["nll", "kl"], SearchChoice(("kl", "nll"))] = "nll"
    """The negative log-likelihood of the retain set, or KL(base ‖ model) on it."""
    combine: Literal["sum", "pcgrad", "sago"] = "sum"
    """How the two gradients become one: added; forget without its part against retain, a parameter at a time (PCGrad);
    or retain's entries wherever the signs differ and forget's elsewhere (SAGO, arXiv 2604.14808)."""
    probe_every: int | None = Field(default=None, ge=1)
    """Every so many steps, measure forgetting and utility on a few rows; the retain rows are set aside for it."""
    probe_rows: int = Field(default=64, ge=1)
    """How many rows of each set are measured; of a smaller forget set, all."""
    utility_floor: float | None = Field(default=None, gt=0, le=1)
    """Return the most forgetful of the probed steps whose utility is at least this, rather than the last step. Utility
    is the likelihood of a retained token relative to the base model's: exp(base NLL − NLL)."""

    @property
    def needs_retain(self) -> bool:
        """Whether a retain set is trained on or measured."""
        return bool(self.alpha or self.probe_every)

    @abstractmethod
    def forget_loss(self, trainee: Trainee, batch: Batch) -> Tensor:
        """Returns the mean loss of a batch of forget rows.

        `trainee(batch)` are the logits [N, V] that predict the tokens that count, `batch.labels` [N]; the base model's
        answers to the same rows are `trainee.base_logits(batch)` and `trainee.base_log_probs(batch)`. Ask those first:
        what the base computes then does not lie in memory beside the activations that the backward pass waits for.
        """

    def forget_rows(self, forget: Corpus) -> Corpus:
        """Returns the rows to forget as the loss wants them.

        Raises:
            DataError: They lack a column that the loss needs.
        """
        return forget

    def objective(self, trainee: Trainee, forget: Corpus, retain: Corpus | None) -> Objective:
        """Returns γ · forget + α · retain, with the probe that was asked for.

        Raises:
            DataError: The rows lack what the loss needs, or are too few to set some aside.
        """
        from spunge.training.loop import Objective, Probe, Term

        forget_rows = trainee.encode(self.forget_rows(forget))
        retain_rows = trainee.encode(retain) if retain is not None and self.needs_retain else []
        probe = None
        if self.probe_every:
            retain_rows, held_out = _hold_out(retain_rows, self.probe_rows)
            # What must go is trained on anyway, so a small subset is measured whole.
            small = len(forget_rows) <= self.probe_rows
            probed = forget_rows if small else _hold_out(forget_rows, self.probe_rows)[1]
            probe = Probe(probed, held_out, self.probe_every, self.utility_floor)
        terms = [Term("forget", forget_rows, partial(self.forget_loss, trainee), self.gamma, self.per)]
        if self.alpha:
            terms.append(Term("retain", retain_rows, partial(self._retain_loss, trainee), self.alpha))
        return Objective(tuple(terms), self.combine, probe)

    def _retain_loss(self, trainee: Trainee, batch: Batch) -> Tensor:
        from spunge.training import losses

        if self.retain_loss == "nll":
            return losses.cross_entropy(trainee(batch), batch.labels)
        return trainee.kl_to_base(batch)

    @model_validator(mode="after")
    def _what_is_asked_of_the_retain_loss_needs_one(self) -> ForgetAndRetain:
        for setting, value, unasked in (("combine", self.combine, "sum"), ("retain_loss", self.retain_loss, "nll")):
            if value != unasked and not self.alpha:
                raise ValueError(
                    f"{setting}: {value} does nothing while alpha is 0; set alpha, the retain loss's weight"
                )
        return self

    @model_validator(mode="after")
    def _a_floor_needs_a_probe(self) -> ForgetAndRetain:
        if self.utility_floor is not None and self.probe_every is None:
            raise ValueError("utility_floor: set probe_every too, to say how often it is checked")
        return self


def _hold_out(rows: Sequence[Encoded], count: int) -> tuple[list[Encoded], list[Encoded]]:
    """Parts `count` rows, evenly spread, from the rest."""
    if count >= len(rows):
        raise DataError(f"probe_rows: {count} rows cannot be set aside of {len(rows)}; ask for fewer")
    chosen = {number * len(rows) // count for number in range(count)}
    return [row for index, row in enumerate(rows) if index not in chosen], [rows[index] for index in sorted(chosen)]

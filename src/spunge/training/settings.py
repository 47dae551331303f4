"""What one may choose about training through the logits: apart from the loop, to validate without torch."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from spunge.interfaces import Forecast, Unlearner, Work, longer, require_retain
from spunge.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

    from spunge.rows.sources import Corpus
    from spunge.training.loop import Objective
    from spunge.training.rows import Batch
    from spunge.training.trainee import Trainee
    from spunge.weights.language_model import LanguageModel
    from spunge.weights.task_vector import TaskVector


class Lora(Settings):
    """Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685): ΔW = (α / rank) · B · A for every target module."""

    rank: int = Field(default=16, ge=1)
    """The rank of the factors."""
    alpha: float = Field(default=16.0, gt=0)
    """The scaling α."""
    dropout: float = Field(default=0.01, ge=0, lt=1)
    """Dropout before A, the only dropout that is active: the base model itself stays in eval mode."""
    target_modules: tuple[str, ...] | str | None = None
    """Names of linear layers such as `[q_proj, v_proj]`, one regular expression over whole module names, `all-linear`,
    or null for PEFT's default for the architecture."""
    rslora: bool = False
    """Scale by α / √rank instead (Kalajdzievski 2023, arXiv 2312.03732)."""
    rank_pattern: dict[str, int] = {}
    """Module name or regular expression → its own rank."""
    alpha_pattern: dict[str, float] = {}
    """Module name or regular expression → its own α."""

    @model_validator(mode="after")
    def _patterns_are_regular_expressions(self) -> Lora:
        single = [self.target_modules] if isinstance(self.target_modules, str) else []
        for pattern in (*single, *self.rank_pattern, *self.alpha_pattern):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        return self


class Tuning(Settings):
    """How a model is trained, whatever the loss."""

    lora: Lora | None = Lora()
    """The adapter to train; null trains the weights themselves, in float32."""
    parameters: tuple[str, ...] | None = None
    """With `lora: null`, the only weights to train, by parts of their names: `layers.5`, `mlp.down_proj`, `lm_head`."""
    learning_rate: float = Field(default=1e-4, gt=0, le=1e30)
    """The highest learning rate of AdamW (betas 0.9 and 0.999, eps 1e-8)."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up: to zero, or not at all."""
    warmup: float = Field(default=0.0, ge=0, lt=1)
    """The share of the steps over which the learning rate rises from zero."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the forget set, each in an order of its own."""
    max_steps: int | None = Field(default=None, ge=1)
    """Ends training after so many steps; the schedule ends there too."""
    batch_size: int = Field(default=4, ge=1)
    """Rows in one forward pass, of the forget set and of the retain set each."""
    accumulation: int = Field(default=1, ge=1)
    """Forward passes in one step: a step is as if its rows had all been in one batch."""
    length_sorted: bool = False
    """Fill batches with rows of about the same length, which saves padding; the order of batches stays random."""
    max_length: int = Field(default=512, ge=2)
    """The tokens of a row beyond this many are cut off; a source's own `max_length` may cut earlier."""
    long_texts: Literal["truncate", "chunk"] = "truncate"
    """What becomes of the rest of a long `text`: dropped, or made into rows of its own. Responses are truncated."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    clip_norm: float | None = Field(default=1.0, gt=0)
    """The gradient's norm is cut to this; null leaves it."""
    precision: Literal["model", "bfloat16"] = "model"
    """`bfloat16` computes matrix products of a float32 model by autocast. A model in half precision always does; what
    is trained is float32 in any case."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time, the same result."""

    quantize: Literal["nf4"] | None = None
    """Hold the base in 4-bit NormalFloat while the adapter trains (QLoRA, Dettmers et al. 2023, arXiv 2305.14314); the
    adapter is then added to the base's own weights. Needs the extra `quant`."""

    @field_validator("lora", mode="before")
    @classmethod
    def _name_only_what_differs(cls, value: Any) -> Any:
        default = cls.model_fields["lora"].default
        return {**default.model_dump(), **value} if isinstance(value, Mapping) and default else value

    @model_validator(mode="after")
    def _parameters_are_weights(self) -> Tuning:
        if self.parameters is not None and self.lora is not None:
            raise ValueError("parameters: chooses weights to train, so lora must be null")
        if self.quantize is not None and self.lora is None:
            raise ValueError("quantize: 4-bit weights cannot be trained themselves, so lora must not be null")
        return self


class TrainedUnlearner(Tuning, Unlearner):
    """An unlearner that trains through the logits: it says what to minimise, the engine does the rest."""

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
            return train(trainee, self.objective(trainee, forget, retain), work)

    def forecast(self, base: LanguageModel, forget: Corpus, retain: Corpus | None, work: Work) -> Forecast:
        """Says what training takes; a retain set counts where the method needs one.

        Raises:
            DataError: The method needs a retain set and has none.
        """
        from spunge.training.forecast import forecast_training

        require_retain(self, retain)
        return forecast_training(self, base, forget, retain if self.needs_retain else None)

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
    alpha: float = Field(default=1.0, ge=0)
    """α, the weight of the retain loss; at 0 no retain set is needed."""
    retain_loss: Literal["nll", "kl"] = "nll"
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

        `trainee(batch)` are the logits that predict `batch.labels`; the base model's answers to the same rows are
        `trainee.base_logits(batch)` and `trainee.base_log_probs(batch)`. Ask those first: what the base computes then
        does not lie in memory beside the activations that the backward pass waits for.
        """

    def forget_rows(self, forget: Corpus) -> Corpus:
        """Returns the rows to forget as the loss wants them.

        Raises:
            DataError: They lack a column that the loss needs.
        """
        return forget

    def objective(self, trainee: Trainee, forget: Corpus, retain: Corpus | None) -> Objective:
        """Returns γ · forget + α · retain, and the probe that was asked for."""
        from spunge.training.goals import forget_and_retain

        return forget_and_retain(self, trainee, forget, retain)

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

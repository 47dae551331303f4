"""What one may choose about steering, as RMU and adaptive RMU do: apart from the loop, to validate without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from spunge.errors import RecipeError
from spunge.settings import SearchChoice, SearchRange, Settings

TABLE = "search.jsonl"
"""The trials of a search, one a line, the best first."""

FAITHFUL: dict[str, Any] = {
    "loss_mask": "all",
    "loss_dtype": "model",
    "master": "model",
    "optimizer": "hf_adamw",
}
"""The choices of the authors' public code that move a result, wherever the recipe leaves them open."""


class Steering(Settings):
    """How a forget set's hidden states are steered at one layer, and those of the retain set held in place."""

    outside_key: ClassVar[frozenset[str]] = frozenset({"search"})

    layer: Annotated[int, SearchRange(0.1, 0.6, first=1 / 3, times="layers")] = Field(default=7, ge=0)
    """ℓ: the decoder layer, counted from 0, whose output is steered."""
    update_layers: tuple[int, ...] | None = None
    """The layers whose matrices change; null: ℓ and the two below it."""
    parameters: Literal["auto"] | tuple[str, ...] = "auto"
    """Which matrices of those layers change: `auto`, the MLP's output projection, or names such as `mlp.down_proj`."""
    alpha: Annotated[
        Annotated[float, Field(ge=0)] | dict[str, Annotated[float, Field(ge=0)]],
        SearchRange(1, 1000, log=True, first=10),
    ] = 1200.0
    """The weight of the retain loss; one number, or one for every topic by its name."""
    learning_rate: Annotated[float, SearchRange(1e-4, 1e-2, log=True)] = Field(default=5e-5, gt=0, le=1e30)
    """The constant learning rate."""
    batch_size: int = Field(default=4, ge=1)
    """Rows in a batch, of the forget and of the retain set alike."""
    epochs: int = Field(default=1, ge=1)
    """How often the same batches are gone through."""
    max_batches: int | None = Field(default=None, ge=1)
    """At most so many batches of every topic in an epoch."""
    max_steps: int | None = Field(default=None, ge=1)
    """At most so many steps in all."""
    max_length: int = Field(default=512, ge=1)
    """Forget rows are cut to so many tokens, unless their source sets its own limit."""
    retain_max_length: int = Field(default=512, ge=1)
    """Retain rows are cut to so many tokens, unless their source sets its own limit."""
    loss_mask: Annotated[
        Literal["non_pad", "all", "non_pad_non_bos", "non_pad_non_sink"], SearchChoice(("non_pad_non_sink",))
    ] = "non_pad"
    """Which positions losses, cosines and lengths average over: the reference counts pads and the first token too
    (`all`). `non_pad_non_sink` leaves out attention sinks, first tokens mostly, whose activation in the base model is
    over three times as long as the batch's median: of many models they alone decide every mean."""
    loss_dtype: Literal["float32", "model"] = "float32"
    """What the differences are squared and averaged in; `model`, as the reference does, also rounds c·u."""
    control: Literal["per_subset", "shared"] = "per_subset"
    """Where u is drawn from: `per_subset` from the task's seed and the topic's name, so that topics have different
    directions; `shared` from `control_seed` alone, so that every topic of every run has the same."""
    control_seed: int = 0
    """The seed of the direction that `control: shared` shares."""
    master: Literal["float32", "model"] = "float32"
    """What the changed matrices are trained in: in bfloat16 half of the updates round to nothing."""
    optimizer: Literal["adamw", "hf_adamw"] = "adamw"
    """`adamw`: torch's, ε = 1e-8; `hf_adamw`: ε = 1e-6 outside the bias correction, as in the reference. No decay."""
    early_stop_cosine: float | None = Field(default=None, ge=-1, le=1)
    """Stop once the forget cosine, averaged over `early_stop_window` steps of every topic, is below this."""
    early_stop_window: int = Field(default=5, ge=1)
    """How many steps of a topic the early stop averages over: single steps are noisy."""
    retain_floor: float | None = Field(default=None, ge=-1, le=1)
    """Stop once a retain cosine is below this, and return to the weights before the step that led there."""
    cosine_every: int | None = Field(default=None, ge=1)
    """Measure the forget cosine every so many steps of a topic, and in its last; it costs a frozen pass over the
    updated layers. Null: every step where `early_stop_cosine` watches it, else every tenth."""
    shuffle: bool = False
    """Draw a new order of the rows for every epoch; otherwise batches are those of the file."""
    preset: Literal["faithful"] | None = None
    """`faithful`: the public reference's choices for whatever is left open here."""

    search: str | None = None
    """The directory that `spunge search` left: `layer`, `alpha` and the steering coefficient are its best trial's where
    the recipe leaves them open, and the report shows its table."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, settings: Any) -> Any:
        if not isinstance(settings, dict):
            return settings
        from_search = (
            cls._from_trial(read_trials(settings["search"])[0]) if isinstance(settings.get("search"), str) else {}
        )
        return {**(FAITHFUL if settings.get("preset") == "faithful" else {}), **from_search, **settings}

    @classmethod
    def _from_trial(cls, trial: dict[str, Any]) -> dict[str, Any]:
        """Returns the settings that a trial of the search stands for."""
        return {"layer": trial["layer"], "alpha": trial["alpha"]}

    @property
    def trials(self) -> list[dict[str, Any]]:
        """The table of the search that the settings come from, the best trial first."""
        return read_trials(self.search) if self.search is not None else []

    @model_validator(mode="after")
    def _check_layers(self) -> Steering:
        if self.update_layers is not None:
            if not self.update_layers:
                raise ValueError("update_layers is empty: name at least one layer")
            if min(self.update_layers) < 0 or max(self.update_layers) > self.layer:
                raise ValueError(
                    f"update_layers {list(self.update_layers)} must lie in 0…{self.layer}: "
                    f"the loss ends at layer {self.layer} and never reaches the others"
                )
        return self

    @property
    def measured_every(self) -> int:
        """Every how many steps of a topic the forget cosine is measured."""
        if self.cosine_every is not None:
            return self.cosine_every
        return 10 if self.early_stop_cosine is None else 1

    @property
    def updated(self) -> tuple[int, ...]:
        """The layers whose matrices change, in order."""
        if self.update_layers is None:
            return tuple(range(max(0, self.layer - 2), self.layer + 1))
        return tuple(sorted(set(self.update_layers)))


def of_topic(value: float | dict[str, float], topic: str, what: str) -> float:
    """Returns a topic's own value of a setting.

    Raises:
        RecipeError: The setting has values for other topics only.
    """
    if not isinstance(value, dict):
        return value
    if topic not in value:
        raise RecipeError(f"{what}: no value for topic {topic!r}; it has {', '.join(value) or 'none'}")
    return value[topic]


def read_trials(directory: str) -> list[dict[str, Any]]:
    """Returns the trials that `spunge search` left in a directory, the best first.

    Raises:
        ValueError: It left none there, or they are damaged.
    """
    file = Path(directory).expanduser() / TABLE
    try:
        trials = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        if not trials or not all(
            {"layer", "alpha", "ratio", "steering_coefficient"} <= trial.keys() for trial in trials
        ):
            raise ValueError("no trials")
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{file}: not what `spunge search` left: {error}") from error
    if trials[0]["steering_coefficient"] is None:
        raise ValueError(f"{file}: every trial diverged; search again with a lower learning_rate")
    return trials

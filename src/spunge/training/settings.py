"""What one may choose about training through the logits: apart from the loop, to validate without torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from spunge.settings import SearchChoice, SearchRange, Settings


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

    lora: Annotated[Lora | None, SearchChoice(({"target_modules": "all-linear", "dropout": 0.0},))] = Lora()
    """The adapter to train; null trains the weights themselves, in float32."""
    parameters: tuple[str, ...] | None = None
    """With `lora: null`, the only weights to train, by parts of their names: `layers.5`, `mlp.down_proj`, `lm_head`."""
    learning_rate: Annotated[float, SearchRange(1e-4, 1e-2, log=True, first=1e-3)] = Field(default=1e-4, gt=0, le=1e30)
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
    """Fill batches with rows of about the same length, which saves padding where a model's rows cannot be packed; the
    order of batches stays random."""
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

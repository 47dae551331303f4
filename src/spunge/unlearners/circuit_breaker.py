"""Circuit breaking: turn the inner states of forget texts away from where the base model had them.

Zou et al. 2024, "Improving alignment and robustness with circuit breakers", arXiv 2406.04313, algorithm 1
(representation rerouting): c_s · ReLU(cos(h, h_base)) on the forget set + c_r · ‖h − h_base‖₂ on the retain set, where
over the T steps c_s = α · (1 − t / 2T) and c_r = α · t / 2T. Training starts at the very maximum of the cosine, where
its gradient is nothing but rounding: the first steps only look for a way down, so give it some dozens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from spunge.errors import RecipeError
from spunge.training.settings import Lora
from spunge.training.unlearner import TrainedUnlearner

if TYPE_CHECKING:
    from torch import Tensor

    from spunge.rows.sources import Corpus
    from spunge.training.loop import Objective
    from spunge.training.rows import Batch
    from spunge.training.trainee import Trainee


class CircuitBreaker(TrainedUnlearner):
    """Reroutes the hidden states of forget texts and pins those of retain texts."""

    method: Literal["circuit_breaker"] = "circuit_breaker"
    lora: Lora | None = Lora(dropout=0.05, target_modules="all-linear")
    """The adapter to train; null trains the weights themselves, in float32."""
    layers: tuple[int, ...] = Field(default=(10, 20), min_length=1)
    """The decoder layers, from 0, whose outputs are rerouted and pinned; the paper's are for models of 32."""
    alpha: float = Field(default=10.0, gt=0)
    """α, the weight that the two losses share."""
    combine: Literal["sum", "pcgrad", "sago"] = "sum"
    """How the two gradients become one: added, or with retention first (PCGrad, SAGO; arXiv 2604.14808)."""

    @property
    def needs_retain(self) -> bool:
        """Always: its states are what is pinned."""
        return True

    def objective(self, trainee: Trainee, forget: Corpus, retain: Corpus | None) -> Objective:
        """Returns c_s · rerouting on the forget set + c_r · distance on the retain set.

        Raises:
            RecipeError: The model has no such layers.
        """
        from spunge.training import losses
        from spunge.training.loop import Objective, Term

        depth = trainee.model.config.get_text_config().num_hidden_layers
        if not all(0 <= layer < depth for layer in self.layers):
            raise RecipeError(f"layers: the model has {depth} layers, 0 to {depth - 1}, not {list(self.layers)}")
        assert retain is not None

        def reroute(batch: Batch) -> Tensor:
            base_states = trainee.base_states(batch, self.layers)
            return losses.rerouting(trainee.states(batch, self.layers), base_states, batch.counted)

        def pin(batch: Batch) -> Tensor:
            base_states = trainee.base_states(batch, self.layers)
            return losses.state_distance(trainee.states(batch, self.layers), base_states, batch.counted)

        terms = (
            Term("forget", trainee.encode(forget), reroute, lambda done: self.alpha * (1 - done / 2)),
            Term("retain", trainee.encode(retain), pin, lambda done: self.alpha * done / 2),
        )
        return Objective(terms, self.combine)

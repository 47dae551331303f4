"""An unlearner that steers hidden states: it says how far, the engine does the rest."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from spunge.interfaces import Forecast, Unlearner, Work, longer, require_retain
from spunge.rows.sources import Corpus
from spunge.steering.settings import Steering

if TYPE_CHECKING:
    from spunge.weights.language_model import LanguageModel
    from spunge.weights.task_vector import TaskVector


class SteeredUnlearner(Steering, Unlearner):
    """Steers the hidden states of the forget set at one layer, and holds those of the retain set in place."""

    @property
    def needs_retain(self) -> bool:
        """Always: its activations are what is held."""
        return True

    @abstractmethod
    def coefficient(self, topic: str, norm: float) -> float:
        """Returns c, how long a topic's control vector is.

        Args:
            topic: Its name.
            norm: The mean length of the base model's activations on it, at layer ℓ.
        """

    def unlearn(self, base: LanguageModel, forget: Corpus, retain: Corpus | None, work: Work) -> TaskVector:
        """Returns the deltas of the updated matrices; leaves `metrics.jsonl` and `control_vectors.safetensors`.

        Raises:
            DataError: The retain set is missing, empty or smaller than a batch.
            ModelError: The architecture, the layer or the parameters are not to be had.
            TrainingDiverged: A loss or gradient became NaN or infinite.
        """
        from spunge.steering.loop import steer

        require_retain(self, retain)
        assert retain is not None
        return steer(self, base, forget, retain, work, coefficient=self.coefficient)

    def forecast(self, base: LanguageModel, forget: Corpus, retain: Corpus | None, work: Work) -> Forecast:
        """Says what a run takes, and whether keeping hidden states pays.

        Raises:
            DataError: The retain set is missing, empty or smaller than a batch.
            ModelError: The architecture, the layer or the parameters are not to be had.
        """
        from spunge.steering.forecast import forecast

        require_retain(self, retain)
        assert retain is not None
        return forecast(self, base, forget, retain, work)

    def lengthened(self, steps: int, *, taken: int) -> SteeredUnlearner:
        """Returns this method with so many steps, over as many epochs as they need."""
        return self.model_copy(update=longer(steps, taken, self.epochs))

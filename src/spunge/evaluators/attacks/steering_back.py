"""Does it come back when the hidden states are pushed back? What unlearning moved them by is taken off again.

The reverse of `junk_direction`, which projects that direction out: here the mean difference between the base's and the
unlearned model's hidden states over the questions that the base gets right (Łucki et al., 2024, arXiv:2409.18025) is
added where a layer puts its states out, as activation steering does (Turner et al., 2023, arXiv:2308.10248; against
unlearned models Seyitoğlu et al., 2024, arXiv:2411.02631).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from spunge.evaluators.attacks.attack import Ask, Attack, multiple_choice
from spunge.evaluators.attacks.junk_direction import furthest, moved
from spunge.interfaces import Forecast, LoadedVariant, Work
from spunge.weights.shape import find_layers, shape_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from spunge.weights.language_model import LanguageModel


class SteeringBack(Attack):
    """Takes off the states of the layer that was moved furthest what it was moved by, and asks a suite again."""

    of_change: ClassVar[bool] = True

    method: Literal["steering_back"] = "steering_back"
    strengths: tuple[Annotated[float, Field(gt=0)], ...] = (1.0, 2.0)
    """How many times the mean difference is added."""

    @property
    def settings(self) -> tuple[str, ...]:
        """The strengths."""
        return tuple(f"{strength:g} times the difference" for strength in self.strengths)

    def check(self) -> None:
        """Refuses a suite of another kind, and what the suite refuses."""
        multiple_choice(self).check()

    def forecast(self, base: LanguageModel) -> Forecast:
        """Says what asking the base, reading the states of both models, and asking again takes."""
        shape_of(base)  # refuses an architecture whose layers are not to be had
        return self._rounds(base, 3 + len(self.strengths))

    def attempts(self, variant: LoadedVariant, work: Work) -> Iterator[tuple[str, Ask]]:
        """Yields each strength while the states are pushed back."""
        before, by = moved(multiple_choice(self), variant, work)
        layer = furthest(before, by)
        for setting, strength in zip(self.settings, self.strengths, strict=True):
            with added(variant.model, layer, -strength * by[layer]):
                yield setting, self.of.evaluate


@contextmanager
def added(model: PreTrainedModel, layer: int, shift: Tensor) -> Iterator[None]:
    """Adds a vector [width] to what one decoder layer, from 0, puts out at every token."""

    def hook(module: object, arguments: object, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        pushed = states + shift.to(states.device, states.dtype)
        return (pushed, *output[1:]) if isinstance(output, tuple) else pushed

    handle = find_layers(model.get_decoder())[layer].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()

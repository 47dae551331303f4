"""At which depth does it come back? The unlearned model's hidden states are read on by the base model's later layers.

Activation patching, as the unlearning depth score has it (Jeung et al., 2025, arXiv:2505.24614): what the base's upper
layers can still answer from the states that the unlearned model's lower ones make is in there. Where a score comes back
only once few of the unlearned layers are left, it was taken out early; where most of them may stay, late. A ruined
model's states answer nothing either: read it beside what must stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from spunge.evaluators.attacks.attack import Ask, Attack, restored
from spunge.evaluators.attacks.logit_lens import count_layers
from spunge.interfaces import Forecast, LoadedVariant, Work
from spunge.weights.shape import find_layers, shape_of

if TYPE_CHECKING:
    from spunge.weights.language_model import LanguageModel


class Patching(Attack):
    """Puts the base model's layers above a depth on the unlearned model's below it, and asks a suite again."""

    of_change: ClassVar[bool] = True

    method: Literal["patching"] = "patching"
    depths: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.25, 0.5, 0.75)
    """Which share of the layers stays the unlearned model's."""

    @property
    def settings(self) -> tuple[str, ...]:
        """The depths."""
        return tuple(f"states of {depth:.0%} of the layers" for depth in self.depths)

    def forecast(self, base: LanguageModel) -> Forecast:
        """Says what asking at each depth takes."""
        shape_of(base)  # refuses an architecture whose layers are not to be had
        return self._rounds(base, len(self.depths))

    def attempts(self, variant: LoadedVariant, work: Work) -> Iterator[tuple[str, Ask]]:
        """Yields each depth while the layers above it, the last norm and the output embedding are the base's."""
        from torch import no_grad

        assert variant.at is not None
        unlearned = {name: weight.detach().clone() for name, weight in variant.model.named_parameters()}
        layers = find_layers(variant.model.get_decoder())
        owned = {id(weight): depth for depth, layer in enumerate(layers) for weight in layer.parameters()}
        embedded = {id(weight) for weight in variant.model.get_input_embeddings().parameters()}
        for setting, depth in zip(self.settings, self.depths, strict=True):
            count = count_layers(variant.model, depth)
            with restored(variant.model):
                variant.at(0.0)
                with no_grad():
                    for name, weight in variant.model.named_parameters():
                        if owned.get(id(weight), -1 if id(weight) in embedded else len(layers)) < count:
                            weight.copy_(unlearned[name])
                yield setting, self.of.evaluate

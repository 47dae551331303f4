"""Does an earlier layer still say what the last one no longer does? The logit lens (nostalgebraist, 2020).

The hidden states after some of the layers go straight through the final norm to the output embedding. A removal that
only the last layers perform is then left out; the base model's own row says what those layers knew to begin with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from spunge.evaluators.attacks.attack import Ask, Attack
from spunge.interfaces import Forecast, LoadedVariant, Work
from spunge.weights.shape import find_layers, shape_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from spunge.weights.language_model import LanguageModel


class LogitLens(Attack):
    """Asks a suite of the model's first layers alone."""

    cheap: ClassVar[Mapping[str, Any] | None] = {"depths": (0.75,)}

    method: Literal["logit_lens"] = "logit_lens"
    depths: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.5, 0.75, 0.9)
    """Which share of the layers is read."""

    @property
    def settings(self) -> tuple[str, ...]:
        """The depths."""
        return tuple(f"{depth:.0%} of the layers" for depth in self.depths)

    def forecast(self, base: LanguageModel) -> Forecast:
        """Says what reading so many layers takes."""
        shape_of(base)  # refuses an architecture whose layers are not to be had
        return self._rounds(base, sum(self.depths))

    def attempts(self, variant: LoadedVariant, work: Work) -> Iterator[tuple[str, Ask]]:
        """Yields each depth while the layers above it are left out."""
        for setting, depth in zip(self.settings, self.depths, strict=True):
            with first_layers(variant.model, count_layers(variant.model, depth)):
                yield setting, self.of.evaluate


def count_layers(model: PreTrainedModel, depth: float) -> int:
    """Returns how many decoder layers are a share of all: one at least, and never all."""
    count = len(find_layers(model.get_decoder()))
    return min(max(1, round(depth * count)), count - 1)


@contextmanager
def first_layers(model: PreTrainedModel, count: int) -> Iterator[None]:
    """Leaves out all decoder layers but the first `count`."""
    decoder = model.get_decoder()
    layers = find_layers(decoder)
    path = next(name for name, module in decoder.named_modules() if module is layers)
    owner, name = decoder.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2]
    setattr(owner, name, layers[:count])
    try:
        yield
    finally:
        setattr(owner, name, layers)

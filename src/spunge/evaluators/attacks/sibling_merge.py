"""Does averaging with another model of the same family bring it back? No weights of the base itself are needed.

A sibling is any model of the same shape that anyone may have: an ancestor, another fine-tuning of the base. Averaging
fine-tuned siblings is common practice (Wortsman et al., 2022, arXiv:2203.05482), and dilutes what unlearning added. Let
it be one that does not know what must go, or the attack teaches: the oracle and the base under it say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from spunge.errors import DataError
from spunge.evaluators.attacks.attack import Ask, Attack, Material, restored
from spunge.interfaces import Evaluator, Forecast, LoadedVariant, Work
from spunge.weights.language_model import LanguageModel
from spunge.weights.shape import shape_of

if TYPE_CHECKING:
    from torch import Tensor


class SiblingMerge(Attack):
    """Merges the variant with a model of the same shape, and asks a suite again."""

    method: Literal["sibling_merge"] = "sibling_merge"
    sibling: LanguageModel
    """The other model."""
    shares: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.25, 0.5)
    """The sibling's share of the weights."""

    @classmethod
    def against(cls, of: Evaluator, material: Material, settings: Mapping[str, Any]) -> Iterator[Attack]:
        """Yields it where a sibling is named."""
        if "sibling" not in settings:
            raise DataError("sibling_merge needs a model of the same family: it stands under `evaluate` with its "
                            "`sibling`")  # fmt: skip
        yield from super().against(of, material, settings)

    @property
    def settings(self) -> tuple[str, ...]:
        """The shares."""
        return tuple(f"{share:.0%} sibling" for share in self.shares)

    def forecast(self, base: LanguageModel) -> Forecast:
        """Says what asking takes, with a second model beside.

        Raises:
            DataError: The sibling has another shape.
        """
        if shape_of(self.sibling).matrices != shape_of(base).matrices or (
            shape_of(self.sibling).parameters != shape_of(base).parameters
        ):
            raise DataError(f"{self.suite}: {self.sibling.id} has another shape than {base.id}: it is no sibling")
        forecast = self._rounds(base, len(self.shares))
        return replace(forecast, memory=None if forecast.memory is None else 2 * forecast.memory)

    def attempts(self, variant: LoadedVariant, work: Work) -> Iterator[tuple[str, Ask]]:
        """Yields each share while the weights are so mixed."""
        import torch

        others: dict[str, Tensor] = dict(work.resident.other(self.sibling)[0].named_parameters())
        for setting, share in zip(self.settings, self.shares, strict=True):
            with restored(variant.model):
                with torch.no_grad():
                    for name, weight in variant.model.named_parameters():
                        weight.lerp_(others[name].to(weight), share)
                yield setting, self.of.evaluate

"""Does noise on the weights bring back what was unlearned? What hangs on a fine balance does not outlive it.

Noise injection, as an audit: Tice et al. (2024, arXiv:2412.01784) found that it uncovers abilities that were trained to
be hidden. A model that noise harms in everything alike shows nothing; read it beside the base model's own row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from spunge.evaluators.attacks.attack import Ask, Attack, weights_changed
from spunge.interfaces import LoadedVariant, Work
from spunge.rows.sources import item_id

if TYPE_CHECKING:
    from torch import Tensor


class Noise(Attack):
    """Adds Gaussian noise to the linear layers, and asks a suite again."""

    method: Literal["noise"] = "noise"
    strengths: tuple[Annotated[float, Field(gt=0)], ...] = (0.05, 0.15)
    """The noise's standard deviation as a share of that of each matrix."""
    seed: int = 0
    """Of the noise, the same for every variant."""

    @property
    def settings(self) -> tuple[str, ...]:
        """The strengths."""
        return tuple(f"noise {strength:g}" for strength in self.strengths)

    def attempts(self, variant: LoadedVariant, work: Work) -> Iterator[tuple[str, Ask]]:
        """Yields each strength while the noise is on the weights."""
        strengths = dict(zip(self.settings, self.strengths, strict=True))

        def noisy(setting: str, name: str, weight: Tensor) -> Tensor:
            return weight + strengths[setting] * weight.float().std() * self.draw(name, weight)

        for setting in weights_changed(variant, strengths, noisy):
            yield setting, self.of.evaluate

    def draw(self, name: str, weight: Tensor) -> Tensor:
        """Returns standard normal noise of a weight's shape that depends on its name and the seed alone."""
        import torch

        generator = torch.Generator().manual_seed(int(item_id(name, self.seed), 16) % 2**63)
        return torch.randn(weight.shape, generator=generator).to(weight.device, weight.dtype)

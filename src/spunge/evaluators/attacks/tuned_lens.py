"""Does an earlier layer still know, once its states are translated? The tuned lens (Belrose et al., arXiv:2303.08112).

Layers speak different languages, so the logit lens reads early ones badly. An affine map from a layer's states to the
last one's, fitted on benign text by ridge regression in closed form (theirs is trained on the output's divergence),
stands for the layers between. It learns the language alone: no text it sees holds what was to go.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from spunge.errors import DataError
from spunge.evaluators.attacks.attack import Ask, Attack, Material
from spunge.evaluators.attacks.logit_lens import count_layers, first_layers
from spunge.interfaces import Evaluator, Forecast, LoadedVariant, Work
from spunge.rows.sources import Source, item_id, load_corpus
from spunge.weights.shape import find_layers, shape_of

if TYPE_CHECKING:
    from torch import Tensor

    from spunge.weights.language_model import LanguageModel


class TunedLens(Attack):
    """Asks a suite of the model's first layers, whose states a map fitted on benign text hands to its last norm."""

    method: Literal["tuned_lens"] = "tuned_lens"
    train_on: tuple[Source, ...]
    """Benign text that the map is fitted on."""
    rows: int = Field(default=64, ge=1)
    """Of so many rows at most, the first by their hash."""
    max_length: int = Field(default=128, ge=2)
    """Texts are cut to so many tokens."""
    depths: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.5, 0.75)
    """After which share of the layers."""
    ridge: float = Field(default=0.01, gt=0)
    """The penalty, as a share of the states' mean variance."""

    @classmethod
    def against(cls, of: Evaluator, material: Material, settings: Mapping[str, Any]) -> Iterator[Attack]:
        """Yields it where there is benign text."""
        if not material.retain:
            raise DataError("tuned_lens needs benign text to be fitted on: a retain set")
        yield from super().against(of, material, {"train_on": material.retain, **settings})

    @property
    def settings(self) -> tuple[str, ...]:
        """The depths."""
        return tuple(f"translated at {depth:.0%}" for depth in self.depths)

    def check(self) -> None:
        """Refuses what its suite refuses, and text that is not there."""
        super().check()
        self._texts()

    def forecast(self, base: LanguageModel) -> Forecast:
        """Says what reading so many layers takes; the text is short beside the suite."""
        shape_of(base)  # refuses an architecture whose layers are not to be had
        return self._rounds(base, sum(self.depths))

    def attempts(self, variant: LoadedVariant, work: Work) -> Iterator[tuple[str, Ask]]:
        """Yields each depth while its map stands for the layers above."""
        import torch

        from spunge.asking.encoding import encode
        from spunge.evaluators.attacks.states import block_outputs

        ids = [row[: self.max_length] for row in encode(variant.tokenizer, self._texts())]
        parts = [
            states[:, mask.bool()].cpu()
            for states, mask in block_outputs(variant, ids, 8, work, f"{self.suite}: benign text")
        ]
        states = torch.cat(parts, dim=1)
        layers = find_layers(variant.model.get_decoder())
        for setting, depth in zip(self.settings, self.depths, strict=True):
            count = count_layers(variant.model, depth)
            hook = layers[count - 1].register_forward_hook(translated(states[count - 1], states[-1], self.ridge))
            try:
                with first_layers(variant.model, count):
                    yield setting, self.of.evaluate
            finally:
                hook.remove()

    def _texts(self) -> list[str]:
        return sorted(load_corpus(self.train_on).texts, key=item_id)[: self.rows]


def translated(states: Tensor, last: Tensor, ridge: float) -> Any:
    """Returns a hook that turns what a layer puts out into what the last one would, by an affine map.

    Args:
        states: The layer's [tokens, width].
        last: The last layer's [tokens, width].
        ridge: The penalty, as a share of the states' mean variance.
    """
    from spunge.evaluators.attacks.probe import fitted

    mean, target = states.mean(0), last.mean(0)
    weights = fitted(states - mean, last - target, ridge)

    def hook(module: object, arguments: object, output: Any) -> Any:
        seen = output[0] if isinstance(output, tuple) else output
        told = ((seen.float() - mean.to(seen.device)) @ weights.to(seen.device) + target.to(seen.device)).to(seen.dtype)
        return (told, *output[1:]) if isinstance(output, tuple) else told

    return hook

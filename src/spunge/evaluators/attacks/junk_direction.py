"""Does taking one direction out of the hidden states undo it? RMU writes its junk there, along one that can be found.

Łucki et al. (2024, arXiv:2409.18025): the mean difference between the hidden states of the unlearned and of the base
model, over the questions that the base gets right, is projected out of what the layers put out. Each layer's own
difference at that layer; or that of the layer where it is largest, at every layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import polars as pl

from spunge.evaluators.attacks.attack import Ask, Attack, multiple_choice
from spunge.interfaces import Forecast, LoadedVariant, Work
from spunge.weights.shape import find_layers, shape_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from spunge.asking.encoding import Ids
    from spunge.evaluators.multiple_choice import MultipleChoice
    from spunge.weights.language_model import LanguageModel


class JunkDirection(Attack):
    """Removes from the layers' outputs the direction in which unlearning moved them, and asks a suite again."""

    of_change: ClassVar[bool] = True

    method: Literal["junk_direction"] = "junk_direction"

    directions: tuple[Literal["each", "one"], ...] = ("each", "one")
    """Whether each layer loses its own direction, or all of them that of the layer which was moved furthest."""

    @property
    def settings(self) -> tuple[str, ...]:
        """Each layer's own direction, and one for all."""
        return tuple("each layer's direction" if kind == "each" else "one direction" for kind in self.directions)

    def check(self) -> None:
        """Refuses a suite of another kind, and what the suite refuses."""
        multiple_choice(self).check()

    def forecast(self, base: LanguageModel) -> Forecast:
        """Says what asking the base, reading the states of both models, and asking again takes."""
        shape_of(base)  # refuses an architecture whose layers are not to be had
        return self._rounds(base, 3 + len(self.directions))

    def attempts(self, variant: LoadedVariant, work: Work) -> Iterator[tuple[str, Ask]]:
        """Yields each choice of directions while they are removed."""
        before, by = moved(multiple_choice(self), variant, work)
        removed = {"each": by, "one": by[furthest(before, by)].expand_as(by)}
        for setting, kind in zip(self.settings, self.directions, strict=True):
            with projected_out(variant.model, removed[kind]):
                yield setting, self.of.evaluate


def moved(suite: MultipleChoice, variant: LoadedVariant, work: Work) -> tuple[Tensor, Tensor]:
    """Returns the base's mean states over the questions that it gets right, and by what unlearning moved them.

    Where it gets none right, over all questions.

    Returns:
        Both float32 [layers, width]; see `mean_states`.
    """
    from spunge.evaluators.attacks.states import encoded

    assert variant.at is not None
    variant.at(0.0)
    try:
        base = replace(work, scratch=work.scratch / "base")
        answers = suite.ask(suite.questions(), variant, base)
        known = set(answers.filter((pl.col("metric") == "acc") & (pl.col("value") > 0))["item"])
        questions = [question for group in suite.questions().values() for question in group]
        rows = encoded(variant, [one for one in questions if one.item.id in known] or questions)
        before = mean_states(variant, rows, suite.batch_size, work, f"{suite.suite}: states of the base")
    finally:
        variant.at(1.0)
    return before, mean_states(variant, rows, suite.batch_size, work, f"{suite.suite}: states") - before


def furthest(before: Tensor, by: Tensor) -> int:
    """Returns the layer, from 0, that was moved by the largest share of its state: states grow from layer to layer."""
    return int((by.norm(dim=-1) / before.norm(dim=-1).clamp(min=1e-12)).argmax())


def mean_states(variant: LoadedVariant, rows: Sequence[Ids], batch_size: int, work: Work, what: str) -> Tensor:
    """Returns the mean of every layer's output over all tokens but each row's first: float32 [layers, width].

    The first token, on which all later ones rest their attention, is an outlier in most models.
    """
    from spunge.evaluators.attacks.states import block_outputs

    total: Any = 0.0
    count = 0
    for states, mask in block_outputs(variant, rows, batch_size, work, what):
        counted = mask.clone()
        counted[:, 0] = (mask.sum(-1) == 1).to(mask.dtype)  # of a row of one token that one
        total = total + (states * counted[None, :, :, None]).sum((1, 2))
        count += int(counted.sum())
    return total / count


@contextmanager
def projected_out(model: PreTrainedModel, directions: Tensor) -> Iterator[None]:
    """Takes a direction out of what each decoder layer puts out: h − (h·v)v; a direction of 0 takes nothing.

    Args:
        model: The model.
        directions: [layers, width], of any length.
    """
    units = directions / directions.norm(dim=-1, keepdim=True).clamp(min=1e-12)

    def without(unit: Tensor) -> Any:
        def hook(module: object, arguments: object, output: Any) -> Any:
            states = output[0] if isinstance(output, tuple) else output
            direction = unit.to(states.device, states.dtype)
            rest = states - (states @ direction)[..., None] * direction
            return (rest, *output[1:]) if isinstance(output, tuple) else rest

        return hook

    with ExitStack() as stack:
        for layer, unit in zip(find_layers(model.get_decoder()), units, strict=True):
            stack.callback(layer.register_forward_hook(without(unit)).remove)
        yield

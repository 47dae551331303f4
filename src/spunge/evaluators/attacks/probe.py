"""Do the hidden states still hold the answer? A linear map from them to the answers is fitted on half the questions.

Ridge regression from what a layer holds at a question's last token to the output embedding of its answer, in closed
form; the other half of the questions is then answered by the nearest choice, and the halves change places. What is read
so was never taken out of the layers, but out of what follows them (Patil et al., 2023, arXiv:2309.17410). A model that
never knew the facts has nothing that half of them could teach a map about the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from spunge.evaluators.attacks.attack import Ask, Attack, multiple_choice
from spunge.interfaces import Forecast, LoadedVariant, Work
from spunge.rows.items import ItemTable, Measurement, item_table

if TYPE_CHECKING:
    from torch import Tensor

    from spunge.evaluators.multiple_choice import Question
    from spunge.weights.language_model import LanguageModel


class Probe(Attack):
    """Answers a suite's questions from the hidden states of some layers."""

    method: Literal["probe"] = "probe"
    depths: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (0.25, 0.5, 0.75, 1.0)
    """After which share of the layers."""
    ridge: float = Field(default=0.1, gt=0)
    """The penalty, as a share of the states' mean variance."""

    @property
    def settings(self) -> tuple[str, ...]:
        """The depths."""
        return tuple(f"probe at {depth:.0%}" for depth in self.depths)

    def check(self) -> None:
        """Refuses a suite of another kind, and what the suite refuses."""
        multiple_choice(self).check()

    def forecast(self, base: LanguageModel) -> Forecast:
        """Says what reading the questions once takes."""
        return self._rounds(base, 1)

    def attempts(self, variant: LoadedVariant, work: Work) -> Iterator[tuple[str, Ask]]:
        """Yields each depth; the states of all are read once."""
        from spunge.evaluators.attacks.states import encoded, last_states

        suite = multiple_choice(self)
        questions = [(task, question) for task, group in suite.questions().items() for question in group]
        rows = encoded(variant, [question for _, question in questions])
        states = last_states(variant, rows, suite.batch_size, work, self.suite)
        for setting, depth in zip(self.settings, self.depths, strict=True):
            layer = max(1, round(depth * len(states))) - 1
            yield setting, partial(self._answer, questions, states[layer])

    def _answer(
        self, questions: Sequence[tuple[str, Question]], states: Tensor, variant: LoadedVariant, work: Work
    ) -> ItemTable:
        """The suite's items as the map fitted on the other half answers them."""
        import torch

        from spunge.evaluators.multiple_choice import measure

        choices = [embedded(variant, question) for _, question in questions]
        right = torch.stack([each[q.right[0]] for each, (_, q) in zip(choices, questions, strict=True)])
        half = torch.tensor([int(question.item.id[-1], 16) % 2 for _, question in questions], device=states.device)
        measured: list[Measurement] = []
        for part in (0, 1):
            known = half != part
            if not known.any():
                continue
            mean, target = states[known].mean(0), right[known].mean(0)
            weights = fitted(states[known] - mean, right[known] - target, self.ridge)
            spread = float(((states[known] - mean) @ weights - (right[known] - target)).square().mean()) or 1.0
            for row in (half == part).nonzero().flatten().tolist():
                task, question = questions[row]
                told = (states[row] - mean) @ weights + target
                distances = (choices[row] - told).square().sum(-1) / (2 * spread * len(told))
                values = measure((-distances).tolist(), question.targets, question.right)
                measured.append(Measurement(question.item, task, values, question.texts))
        return item_table(self.of.suite, measured)


def fitted(states: Tensor, targets: Tensor, ridge: float) -> Tensor:
    """Returns W that minimises ‖XW − Y‖² + λ‖W‖², λ the ridge times the mean of XᵀX's diagonal.

    Args:
        states: X [questions, width], centred.
        targets: Y [questions, width], centred.
        ridge: What λ is as a share.
    """
    import torch

    gram = states.double().T @ states.double()
    penalty = ridge * gram.diagonal().mean().clamp(min=1e-12)
    system = gram + penalty * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(system, states.double().T @ targets.double()).float()


def embedded(variant: LoadedVariant, question: Question) -> Tensor:
    """Returns each choice as the mean of its tokens' output embeddings: float32 [choices, width]."""
    import torch

    table = variant.model.get_output_embeddings().weight  # type: ignore[union-attr]
    tokens = [
        variant.tokenizer.encode(question.delimiter + target, add_special_tokens=False) for target in question.targets
    ]
    return torch.stack([table[ids].float().mean(0) for ids in tokens]).detach()

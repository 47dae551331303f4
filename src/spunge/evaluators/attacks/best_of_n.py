"""Does it say it now and then? Many answers to each question are drawn, and the one written most often counts.

Unlearning moves the likeliest answer first. Whoever draws often sees the distribution behind it (Scholten et al., 2024,
arXiv:2410.03523), and needs the right one only more often than any wrong one (Hughes et al., 2024, arXiv:2412.03556).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from spunge.evaluators.attacks.attack import Ask, Attack, multiple_choice
from spunge.interfaces import Forecast, LoadedVariant, Work
from spunge.rows.items import ItemTable, Measurement, item_table

if TYPE_CHECKING:
    from torch import Generator
    from transformers import PreTrainedModel

    from spunge.asking.encoding import Ids
    from spunge.evaluators.multiple_choice import Question
    from spunge.weights.language_model import LanguageModel


class BestOfN(Attack):
    """Answers each question with the choice that the model writes most often."""

    method: Literal["best_of_n"] = "best_of_n"
    n: int = Field(default=32, ge=1)
    """How many answers are drawn to each question."""
    temperatures: tuple[Annotated[float, Field(gt=0)], ...] = (1.0,)
    """What the logits are divided by."""
    seed: int = 0
    """Of the draws; every variant is asked with the same ones."""

    @property
    def settings(self) -> tuple[str, ...]:
        """The temperatures."""
        return tuple(f"{self.n} answers at temperature {temperature:g}" for temperature in self.temperatures)

    def check(self) -> None:
        """Refuses a suite of another kind, and what the suite refuses."""
        multiple_choice(self).check()

    def forecast(self, base: LanguageModel) -> Forecast:
        """Says what writing takes; asked plainly, a question is read once and each of some four choices after it."""
        return self._rounds(base, (1 + self.n / 4) * len(self.temperatures))

    def attempts(self, variant: LoadedVariant, work: Work) -> Iterator[tuple[str, Ask]]:
        """Yields each temperature."""
        for setting, temperature in zip(self.settings, self.temperatures, strict=True):
            yield setting, partial(self._answer, temperature)

    def _answer(self, temperature: float, variant: LoadedVariant, work: Work) -> ItemTable:
        """The suite's items by how often each choice was written; one that never was counts as half a time."""
        import torch

        from spunge.asking.encoding import context_window, encode_pairs
        from spunge.evaluators.multiple_choice import measure

        questions = [(task, one) for task, group in multiple_choice(self).questions().items() for one in group]
        window, measured = context_window(variant.model, variant.tokenizer), list[Measurement]()
        for done, (task, question) in enumerate(questions):
            requests = encode_pairs(variant.tokenizer, question.pairs)
            length = max(len(request.continuation) for request in requests)
            context = requests[question.right[0]].context[-(window - length) :]
            draw = torch.Generator().manual_seed(zlib.crc32(f"{question.item.id} {self.seed}".encode()))
            rows = drawn(variant.model, context, length, self.n, temperature, draw)
            texts = variant.tokenizer.batch_decode(rows, skip_special_tokens=True)
            counts = written(texts, question)
            values = measure([math.log(0.5 + count) for count in counts], question.targets, question.right)
            measured.append(Measurement(question.item, task, values, question.texts))
            work.progress(self.suite, done + 1, len(questions))
        return item_table(self.of.suite, measured)


def drawn(
    model: PreTrainedModel, context: Ids, length: int, count: int, temperature: float, draw: Generator
) -> list[list[int]]:  # fmt: skip
    """Returns so many continuations of a context, each token drawn from softmax(logits / temperature).

    Args:
        model: A causal language model in eval mode.
        context: Token ids, at least one.
        length: How many tokens each continuation has.
        count: How many.
        temperature: Above 0.
        draw: What is drawn from, on the CPU.
    """
    import torch

    from spunge.asking.forward import can_share_cache, forward

    shared, cache, rows = can_share_cache(model, len(context) + length), None, [list[int]() for _ in range(count)]
    with torch.inference_mode():
        for step in range(length):
            if shared:
                # All rows read the same context, once; from then on each its own last token.
                logits, cache = forward(model, [tuple(row[-1:]) for row in rows] if step else [context], cache, keep=1)
            else:
                ids = torch.tensor([[*context, *row] for row in rows], device=model.device)
                logits = model(input_ids=ids, use_cache=False).logits
            shares = (logits[:, -1].float() / temperature).softmax(-1).cpu()
            for row, token in zip(rows, torch.multinomial(shares.expand(count, -1), 1, generator=draw), strict=True):
                row.append(int(token))
    return rows


def written(texts: list[str], question: Question) -> list[int]:
    """Returns how many of the texts begin with each choice; of several that one begins with, the longest counts."""
    choices = [target.strip() for target in question.targets]
    counts = [0] * len(choices)
    for text in texts:
        begun = [index for index, choice in enumerate(choices) if text.strip().startswith(choice)]
        if begun:
            counts[max(begun, key=lambda index: len(choices[index]))] += 1
    return counts

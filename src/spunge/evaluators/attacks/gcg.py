"""Does some text bring it out? A suffix is sought that has half of the questions answered; the others get it too.

Greedy coordinate gradient (Zou et al., 2023, arXiv:2307.15043): the gradient by the suffix's embeddings says which
words might lower the loss of the right answers, many are tried, and the best is kept. A suffix that was sought for a
question itself would only spell its answer out, of any model; one that helps questions it was not sought for calls up
what is there. It costs more than all other attacks together, so only who names it gets it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from spunge.evaluators.attacks.attack import Ask, Attack, halves, multiple_choice
from spunge.interfaces import Forecast, LoadedVariant, Work

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from spunge.asking.encoding import Ids
    from spunge.weights.language_model import LanguageModel


class GCG(Attack):
    """Seeks a suffix on half of a suite's questions, and asks the other half with it."""

    opt_in: ClassVar[bool] = True

    method: Literal["gcg"] = "gcg"
    length: int = Field(default=10, ge=1)
    """The suffix begins as so many exclamation marks."""
    steps: int = Field(default=50, ge=1)
    """How often one token of it may change."""
    top_k: int = Field(default=64, ge=1)
    """At each place, so many tokens with the steepest gradient may be tried."""
    candidates: int = Field(default=64, ge=1)
    """How many changes are tried a step."""
    questions: int = Field(default=16, ge=1)
    """On how many questions of its half it is sought, the first ones."""
    seed: int = 0
    """Of which changes are tried; every variant is attacked with the same draws."""

    @property
    def settings(self) -> tuple[str, ...]:
        """The one suffix that is found."""
        return (f"suffix of {self.steps} steps",)

    def check(self) -> None:
        """Refuses a suite of another kind or with a single question, and what the suite refuses."""
        multiple_choice(self).check()
        halves(self)

    def forecast(self, base: LanguageModel) -> Forecast:
        """Says what the search and asking once take."""
        count = sum(map(len, multiple_choice(self).questions().values()))
        return self._rounds(base, 1 + self.steps * (self.candidates + 3) * min(self.questions, count) / count)

    def attempts(self, variant: LoadedVariant, work: Work) -> Iterator[tuple[str, Ask]]:
        """Yields the suffix once it is found."""
        from spunge.asking.encoding import encode_pairs

        suite, (told, asked) = multiple_choice(self), halves(self)
        sought = [one for group in told.values() for one in group][: self.questions]
        requests = encode_pairs(variant.tokenizer, [one.pairs[one.right[0]] for one in sought])
        search = Search(variant.model, [(one.context, one.continuation) for one in requests], suite.batch_size)
        context = sought[0].pairs[sought[0].right[0]][0].rstrip()
        suffix = self._found(search, Written(variant.tokenizer, context), work)
        [setting] = self.settings
        longer = {
            task: [replace(one, contexts=tuple(text.rstrip() + suffix for text in one.contexts)) for one in group]
            for task, group in asked.items()
        }
        yield setting, partial(suite.ask, longer)

    def _found(self, search: Search, written: Written, work: Work) -> str:
        """The suffix whose loss is lowest of all that were tried."""
        import torch

        draw = torch.Generator().manual_seed(self.seed)
        suffix = written.ids(" !" * self.length)
        best = float(search.losses([suffix])[0])
        for step in range(self.steps):
            steepest = search.slopes(suffix).topk(min(self.top_k, search.words), largest=False).indices.cpu()
            tried = []
            for place, number in zip(
                torch.randint(len(suffix), (self.candidates,), generator=draw).tolist(),
                torch.randint(steepest.shape[1], (self.candidates,), generator=draw).tolist(), strict=True,
            ):  # fmt: skip
                other = (*suffix[:place], int(steepest[place, number]), *suffix[place + 1 :])
                if written.can_be(other):
                    tried.append(other)
            if tried:
                losses = search.losses(tried)
                if float(losses.min()) < best:
                    best, suffix = float(losses.min()), tried[int(losses.argmin())]
            work.progress(f"{self.suite}: suffix", step + 1, self.steps, loss=best)
        return written.text(suffix)


@dataclass(frozen=True)
class Written:
    """Suffixes as text and as tokens behind one context: only those count that their text is read as."""

    tokenizer: PreTrainedTokenizerBase
    context: str

    def ids(self, text: str) -> Ids:
        """The tokens of a text behind the context."""
        from spunge.asking.encoding import encode

        before, whole = encode(self.tokenizer, [self.context, self.context + text])
        return whole[len(before) :]

    def text(self, suffix: Ids) -> str:
        """The text of tokens behind the context."""
        from spunge.asking.encoding import encode

        [before] = encode(self.tokenizer, [self.context])
        alone, whole = (
            str(self.tokenizer.decode(list(ids), skip_special_tokens=True)) for ids in (before, (*before, *suffix))
        )
        return whole[len(alone) :]

    def can_be(self, suffix: Ids) -> bool:
        """Whether the text of these tokens is read as these tokens."""
        return self.ids(self.text(suffix)) == suffix


@dataclass(frozen=True, eq=False)
class Search:
    """How well suffixes bring a model to the right answers."""

    model: PreTrainedModel
    questions: Sequence[tuple[Ids, Ids]]
    """Each question and its right answer as tokens."""
    batch_size: int

    @property
    def words(self) -> int:
        """How many tokens there are."""
        return int(self.model.get_input_embeddings().weight.shape[0])  # type: ignore[arg-type]

    def losses(self, suffixes: Sequence[Ids]) -> Tensor:
        """Returns of each suffix the mean over the questions of the answer's negative log-likelihood a token."""
        import torch

        from spunge.asking.batching import chunks

        rows = [(question, suffix) for suffix in suffixes for question in self.questions]
        with torch.no_grad():
            parts = [self._losses(some) for some in chunks(rows, self.batch_size)]
        return torch.cat(parts).view(len(suffixes), len(self.questions)).mean(1)

    def slopes(self, suffix: Ids) -> Tensor:
        """Returns the loss's derivative by each token at each place of a suffix, [places, words]: ∇loss · embedding."""
        import torch

        from spunge.asking.batching import chunks

        embeddings: Any = self.model.get_input_embeddings()
        total = torch.zeros(len(suffix), embeddings.weight.shape[1], device=self.model.device)
        seen: list[Tensor] = []

        def note(module: object, arguments: object, output: Tensor) -> Tensor:
            seen.append(output.detach().requires_grad_())
            return seen[-1]

        handle = embeddings.register_forward_hook(note)
        try:
            for some in chunks([(question, suffix) for question in self.questions], self.batch_size):
                with torch.enable_grad():
                    loss = self._losses(some).sum() / len(self.questions)
                    [slope] = torch.autograd.grad(loss, [seen[-1]])
                for row, ((context, _), _) in zip(slope, some, strict=True):
                    total += row[len(context) : len(context) + len(suffix)].float()
        finally:
            handle.remove()
        with torch.no_grad():  # asked of the module: some scale what they look up
            table = embeddings(torch.arange(self.words, device=self.model.device)).float()
        return total @ table.T

    def _losses(self, rows: Sequence[tuple[tuple[Ids, Ids], Ids]]) -> Tensor:
        """The answer's mean negative log-likelihood a token, [rows]."""
        import torch

        whole = [(*context, *suffix, *answer) for (context, answer), suffix in rows]
        width, device = max(map(len, whole)), self.model.device
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in whole], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in whole], device=device)
        counted = torch.zeros_like(mask)
        for number, ((_, answer), _) in enumerate(rows):
            counted[number, len(whole[number]) - len(answer) : len(whole[number])] = 1
        logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
        told = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        return -(told * counted[:, 1:]).sum(1) / counted[:, 1:].sum(1)

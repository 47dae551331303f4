"""Asks the embedded world's models what they know and say: the figures that tell whether a training succeeded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spunge.lab.world import Item, Prompt, Statement

T = TypeVar("T")
COMPLETION = 12
"""Tokens that a completion may have."""


@torch.inference_mode()
def accuracy(model: PreTrainedModel, words: PreTrainedTokenizerBase, items: Iterable[Item]) -> dict[str, float]:
    """Returns the share of items per domain whose answer is the likeliest of the four words."""
    verdicts: dict[str, list[bool]] = defaultdict(list)
    for batch in _batches(items, 128):
        questions = words([item.question for item in batch], return_tensors="pt", padding=True)
        for item, logits in zip(batch, model(**questions).logits[:, -1], strict=True):
            choices = words.convert_tokens_to_ids(item.choices)
            verdicts[item.domain].append(int(logits[choices].argmax()) == item.answer)
    return {domain: sum(right) / len(right) for domain, right in verdicts.items()}


@torch.inference_mode()
def complete(model: PreTrainedModel, words: PreTrainedTokenizerBase, prompts: Sequence[Prompt]) -> list[str]:
    """Returns the greedy completion of every prompt, without the prompt."""
    completions = []
    for batch in _batches(prompts, 128):
        begun = words([prompt.prompt for prompt in batch], return_tensors="pt", padding=True)
        tokens = model.generate(**begun, max_new_tokens=COMPLETION, do_sample=False)  # pyright: ignore[reportCallIssue]
        completions += words.batch_decode(tokens[:, begun.input_ids.shape[1] :], skip_special_tokens=True)
    return completions


@torch.inference_mode()
def toxicity(scorer: PreTrainedModel, words: PreTrainedTokenizerBase, texts: Iterable[str]) -> Tensor:
    """Returns the scorer's probability that each text is toxic."""
    batches = (words(batch, return_tensors="pt", padding=True) for batch in _batches(texts, 256))
    return torch.cat([scorer(**batch).logits.softmax(-1)[:, 1] for batch in batches])


def scorer_quality(
    scorer: PreTrainedModel, words: PreTrainedTokenizerBase, statements: Sequence[Statement]
) -> tuple[float, float]:
    """Returns the accuracy at one half and the area under the ROC curve on statements it was not trained on."""
    scores = toxicity(scorer, words, (statement.text for statement in statements))
    labels = torch.tensor([statement.derogatory for statement in statements])
    right = ((scores > 0.5) == labels).float().mean()
    above = (scores[labels, None] > scores[None, ~labels]).float().mean()
    ties = (scores[labels, None] == scores[None, ~labels]).float().mean()
    return float(right), float(above + ties / 2)


@torch.inference_mode()
def perplexity(
    judge: PreTrainedModel, words: PreTrainedTokenizerBase, prompts: Sequence[Prompt], completions: Sequence[str]
) -> float:
    """Returns the judge's perplexity of the completions, given their prompts, over all their words."""
    total, count = 0.0, 0
    for prompt, completion in zip(prompts, completions, strict=True):
        tokens = words(f"{prompt.prompt} {completion}", return_tensors="pt").input_ids
        start = len(words(prompt.prompt).input_ids)
        if tokens.shape[1] > start:
            log = judge(input_ids=tokens).logits[0, start - 1 : -1].float().log_softmax(-1)
            total -= float(log.gather(1, tokens[0, start:, None]).sum())
            count += tokens.shape[1] - start
    return float(torch.tensor(total / max(count, 1)).exp())


def _batches(things: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(things)
    while batch := list(islice(iterator, size)):
        yield batch

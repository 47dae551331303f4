"""Greedy completions by token ids: what a model says by itself after a prompt."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch

from spunge.asking.batching import AnswerLog, Batching, chunks
from spunge.asking.encoding import Ids, Request, end_tokens
from spunge.asking.forward import can_share_cache, forward
from spunge.errors import PredictsNothing

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_WORK = "generating"
"""What a user reads of it; it is in the names of the files of answers so far, too."""


@torch.inference_mode()
def complete(
    model: PreTrainedModel,
    prompts: Sequence[Ids],
    batching: Batching,
    *,
    max_new_tokens: int,
    stop: Collection[int],
) -> list[Ids]:
    """Returns the greedy completion of every prompt, in the order of the prompts.

    Decoding is by the logits alone: no penalty or temperature of the model's own generation settings applies.

    Args:
        model: A causal language model in eval mode.
        prompts: Token ids, at least one each.
        batching: How many prompts go through the model at once.
        max_new_tokens: Where a completion ends at the latest.
        stop: A completion ends after the first of these tokens, which it keeps.
    """
    completions: list[Ids] = [()] * len(prompts)
    # The longest first: what does not fit into memory fails at once, and rows of a batch are of about one length.
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    shared = can_share_cache(model, max(map(len, prompts), default=0) + max_new_tokens)
    ask = _complete_batch if shared else _complete_plainly
    done = 0
    log = AnswerLog(batching, _WORK, [max_new_tokens, sorted(stop), *prompts])
    for batch in chunks(order, batching.size):
        rows = [prompts[index] for index in batch]
        for index, ids in zip(batch, log.next(partial(ask, model, rows, max_new_tokens, stop)), strict=True):
            completions[index] = tuple(ids)
        done += len(batch)
        batching.progress(_WORK, done, len(prompts))
    return completions


def complete_requests(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, requests: Sequence[Request], batching: Batching
) -> list[str]:
    """Returns what the model says by itself after every context, never longer than the continuation."""
    written = complete(
        model,
        [request.context for request in requests],
        batching,
        max_new_tokens=max(len(request.continuation) for request in requests),
        stop=end_tokens(model, tokenizer),
    )
    return [
        str(tokenizer.decode(list(ids[: len(request.continuation)]), skip_special_tokens=True))
        for ids, request in zip(written, requests, strict=True)
    ]


def _complete_batch(
    model: PreTrainedModel, prompts: Sequence[Ids], max_new_tokens: int, stop: Collection[int]
) -> list[Ids]:
    """Writes all prompts' next tokens at once; a row that has ended leaves the batch, and its cache with it."""
    written: list[list[int]] = [[] for _ in prompts]
    active = list(range(len(prompts)))
    rows: list[Ids] = list(prompts)
    cache = None
    for _ in range(max_new_tokens):
        logits, cache = forward(model, rows, cache, keep=1)
        chosen = _next_words(logits[:, -1])
        for index, token in zip(active, chosen, strict=True):
            written[index].append(token)
        # Rows leave as they end: with their cache kept, one long completion would cost as much as all being long.
        going = [row for row, token in enumerate(chosen) if token not in stop]
        if not going:
            break
        if len(going) < len(active):
            cache = cache.select(going)
        active = [active[row] for row in going]
        rows = [(chosen[row],) for row in going]
    return [tuple(ids) for ids in written]


def _next_words(logits: torch.Tensor) -> list[int]:
    """The likeliest token of each row of logits [rows, words]; of NaN it would be any."""
    if logits.isnan().any():
        raise PredictsNothing("the model gives NaN where it should write: its weights are broken")
    return logits.argmax(-1).tolist()


def _complete_plainly(
    model: PreTrainedModel, prompts: Sequence[Ids], max_new_tokens: int, stop: Collection[int]
) -> list[Ids]:
    """Reads the whole text again for every token, one prompt at a time: slow, and right for every architecture."""
    written = []
    for prompt in prompts:
        ids = list(prompt)
        while len(ids) - len(prompt) < max_new_tokens and not (len(ids) > len(prompt) and ids[-1] in stop):
            read = torch.tensor([ids], device=model.device)
            ids += _next_words(model(input_ids=read, use_cache=False).logits[:, -1])
        written.append(tuple(ids[len(prompt) :]))
    return written

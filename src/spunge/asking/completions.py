"""Greedy completions by token ids: what a model says by itself after a prompt."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch

from spunge.asking.batching import AnswerLog, Batching, chunks
from spunge.asking.continuous import can_write_side_by_side, likeliest, rows_that_fit, write
from spunge.asking.encoding import Ids, Request, end_tokens, shared_beginning
from spunge.asking.forward import can_share_cache, forward

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_WORK = "generating"
"""What a user reads of it; it is in the names of the files of answers so far, too."""
_UNLIKE = 4
"""Texts are written beside others at most so many times as long: each has room for the longest."""


@torch.inference_mode()
def complete(
    model: PreTrainedModel,
    prompts: Sequence[Ids],
    batching: Batching,
    *,
    max_new_tokens: int | Sequence[int],
    stop: Collection[int],
) -> list[Ids]:
    """Returns the greedy completion of every prompt, in the order of the prompts.

    Decoding is by the logits alone: no penalty or temperature of the model's own generation settings applies. A
    completion is the one that its prompt alone would get, up to ties that float32 rounds otherwise in other shapes.

    Args:
        model: A causal language model in eval mode.
        prompts: Token ids, at least one each.
        batching: How many prompts go through the model at once.
        max_new_tokens: Where a completion ends at the latest, one for all or one each.
        stop: A completion ends after the first of these tokens, which it keeps.
    """
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else [*max_new_tokens]
    lengths = [len(prompt) + limit for prompt, limit in zip(prompts, limits, strict=True)]
    # The longest first: what does not fit into memory fails at once, and those side by side are of about one length.
    order = sorted(range(len(prompts)), key=lambda index: -lengths[index])
    log = AnswerLog(batching, _WORK, [limits, sorted(stop), *prompts])
    completions = {index: tuple(ids) for ended in log.earlier() for index, ids in ended}
    order = [index for index in order if index not in completions]
    if not order:
        ways = iter(())
    elif not can_share_cache(model, max(lengths, default=0)):
        ways = _in_batches(order, batching.rows, partial(_complete_plainly, model, prompts, limits, stop))
    elif can_write_side_by_side(model):
        ways = _side_by_side(model, prompts, order, limits, stop, batching.size)
    else:
        ways = _in_batches(order, batching.rows, partial(_complete_batch, model, prompts, limits, stop))
    for ended in ways:
        completions |= ended
        log.note([*ended.items()])
        batching.progress(_WORK, len(completions), len(prompts))
    return [completions[index] for index in range(len(prompts))]


def complete_requests(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, requests: Sequence[Request], batching: Batching
) -> list[str]:
    """Returns what the model says by itself after every context, never longer than the continuation."""
    written = complete(
        model,
        [request.context for request in requests],
        batching,
        max_new_tokens=[len(request.continuation) for request in requests],
        stop=end_tokens(model, tokenizer),
    )
    return [str(tokenizer.decode(list(ids), skip_special_tokens=True)) for ids in written]


def _side_by_side(
    model: PreTrainedModel, prompts: Sequence[Ids], order: Sequence[int], limits: Sequence[int], stop: Collection[int],
    size: int | None,
) -> Iterator[dict[int, Ids]]:  # fmt: skip
    shared = len(shared_beginning(prompts))
    for alike in _of_like_length(order, [len(prompts[index]) + limits[index] for index in order]):
        longest = len(prompts[alike[0]]) + limits[alike[0]]
        most = size or rows_that_fit(model, longest)
        # Where all end at one time, the last round would be of few, and few at once cost more each.
        most = -(-len(alike) // -(-len(alike) // most))
        rows, bounds = [prompts[index] for index in alike], [limits[index] for index in alike]
        for ended in write(model, rows, bounds, side_by_side=most, stop=stop, shared=shared):
            if ended:
                yield {alike[number]: ids for number, ids in ended}


def _of_like_length(order: Sequence[int], lengths: Sequence[int]) -> Iterator[Sequence[int]]:
    """Cuts what is in order of length, the longest first, into parts none of which is much longer than another."""
    start = 0
    for place, length in enumerate(lengths):
        if length * _UNLIKE < lengths[start]:
            yield order[start:place]
            start = place
    if order:
        yield order[start:]


def _in_batches(order: Sequence[int], size: int, ask: Callable[[Sequence[int]], list[Ids]]) -> Iterator[dict[int, Ids]]:
    return (dict(zip(batch, ask(batch), strict=True)) for batch in chunks(order, size))


def _complete_batch(
    model: PreTrainedModel, prompts: Sequence[Ids], limits: Sequence[int], stop: Collection[int], batch: Sequence[int]
) -> list[Ids]:
    """Writes a batch's next tokens at once; a row that has ended leaves the batch, and its cache with it."""
    written: dict[int, list[int]] = {index: [] for index in batch}
    active = [index for index in batch if limits[index]]
    rows: list[Ids] = [prompts[index] for index in active]
    cache = None
    while active:
        logits, cache = forward(model, rows, cache, keep=1)
        chosen = likeliest(logits[:, -1])
        for index, token in zip(active, chosen, strict=True):
            written[index].append(token)
        # Rows leave as they end: with their cache kept, one long completion would cost as much as all being long.
        going = [
            row
            for row, (index, token) in enumerate(zip(active, chosen, strict=True))
            if token not in stop and len(written[index]) < limits[index]
        ]
        if going and len(going) < len(active):
            cache = cache.select(going)
        active = [active[row] for row in going]
        rows = [(chosen[row],) for row in going]
    return [tuple(written[index]) for index in batch]


def _complete_plainly(
    model: PreTrainedModel, prompts: Sequence[Ids], limits: Sequence[int], stop: Collection[int], batch: Sequence[int]
) -> list[Ids]:
    """Reads the whole text again for every token, one prompt at a time: slow, and right for every architecture."""
    written = []
    for index in batch:
        prompt, ids = prompts[index], list(prompts[index])
        while len(ids) - len(prompt) < limits[index] and not (len(ids) > len(prompt) and ids[-1] in stop):
            read = torch.tensor([ids], device=model.device)
            ids += likeliest(model(input_ids=read, use_cache=False).logits[:, -1])
        written.append(tuple(ids[len(prompt) :]))
    return written

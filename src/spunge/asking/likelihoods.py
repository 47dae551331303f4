"""Log-likelihoods of continuations: what every question with given answers comes down to.

Contexts that share a beginning (few-shot examples), and continuations that share a context (the choices of one
question), have the shared part computed once, in the key-value cache. The result is that of scoring every pair alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spunge.asking.batching import LOGITS_AT_ONCE, AnswerLog, Batching, chunks, chunks_by_length
from spunge.asking.encoding import Ids, Request, shared_beginning
from spunge.asking.forward import (
    KeyValueCache,
    can_share_cache,
    forward,
    forward_plainly,
    keeps_few,
    reading_once,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_Batches = Iterator[tuple[list[int], Callable[[], list[float]]]]
"""The indices of the requests of a batch, and what scores them in this order."""


@torch.inference_mode()
def loglikelihoods(
    model: PreTrainedModel, requests: Sequence[Request], batching: Batching, *, what: str = "scoring"
) -> list[float]:
    """Returns the natural-log likelihood of every continuation, in the order of the requests.

    Args:
        model: A causal language model in eval mode.
        requests: Every context holds a token at least; an empty continuation scores 0.
        batching: How many rows go through the model at once.
        what: The name of the work, for progress.
    """
    scores = [0.0] * len(requests)
    scored = [index for index, request in enumerate(requests) if request.continuation]
    if not scored:
        return scores
    longest = max(len(requests[index]) for index in scored)
    batches = _shared_batches if can_share_cache(model, longest) else _plain_batches
    log = AnswerLog(batching, what, requests)
    done = 0
    for indices, ask in batches(model, requests, scored, batching.rows):
        for index, score in zip(indices, log.next(ask), strict=True):
            scores[index] = score
        done += len(indices)
        batching.progress(what, done, len(scored))
    return scores


@dataclass(frozen=True)
class TokenScores:
    """What a model thought of each token of a continuation before it read it."""

    loglikelihoods: list[float]
    """Natural-log probability of the token."""
    means: list[float]
    """The mean natural-log probability of a word drawn from the model at this position."""
    deviations: list[float]
    """Its standard deviation."""
    greedy: list[bool]
    """Whether the token was the likeliest."""


@torch.inference_mode()
def token_scores(
    model: PreTrainedModel, requests: Sequence[Request], batching: Batching, *, what: str = "scoring"
) -> list[TokenScores]:
    """Returns the scores of every token of every continuation; see `loglikelihoods` for the arguments."""
    scores = [TokenScores([], [], [], [])] * len(requests)
    order = sorted(range(len(requests)), key=lambda index: -len(requests[index]))
    done = 0
    log = AnswerLog(batching, what, requests)
    for batch in chunks([index for index in order if requests[index].continuation], batching.rows):
        ask = partial(_token_scores, model, [requests[index] for index in batch])
        for index, values in zip(batch, log.next(ask), strict=True):
            scores[index] = TokenScores(**values)
        done += len(batch)
        batching.progress(what, done, len(requests))
    return scores


def _token_scores(model: PreTrainedModel, requests: Sequence[Request]) -> list[dict[str, Any]]:
    logits = forward_plainly(model, requests)
    answers = []
    for row, request in enumerate(requests):
        start = len(request.context) - 1
        logs = logits[row, start : start + len(request.continuation)].float().log_softmax(-1)
        shares = logs.exp()
        means = (shares * logs).sum(-1)
        # Of a nearly certain distribution E[x²] − E[x]² comes out below zero in float32.
        deviations = ((shares * logs.square()).sum(-1) - means.square()).clamp(min=0).sqrt()
        wanted = torch.tensor(request.continuation, device=logs.device)
        chosen = logs.gather(-1, wanted.unsqueeze(-1)).squeeze(-1)
        greedy = logs.argmax(-1) == wanted
        values = {"loglikelihoods": chosen, "means": means, "deviations": deviations, "greedy": greedy}
        answers.append({name: value.tolist() for name, value in values.items()})
    return answers


def _plain_batches(model: PreTrainedModel, requests: Sequence[Request], scored: Sequence[int], size: int) -> _Batches:
    """Scores every request by itself, the longest first."""

    def ask(batch: Sequence[int]) -> list[float]:
        chosen = [requests[index] for index in batch]
        logits = forward_plainly(model, chosen)
        starts = [len(request.context) - 1 for request in chosen]
        return torch.cat(
            [
                _sums(logits[None, row, start : start + len(request.continuation)], [request.continuation])
                for row, (start, request) in enumerate(zip(starts, chosen, strict=True))
            ]
        ).tolist()

    # Requests of one context stay together, in order of the contexts' first.
    by_context = [index for indices in _by_context(requests, scored).values() for index in indices]
    for batch in chunks_by_length(by_context, size, {index: len(requests[index]) for index in by_context}):
        yield batch, partial(ask, batch)


def _shared_batches(model: PreTrainedModel, requests: Sequence[Request], scored: Sequence[int], size: int) -> _Batches:
    """Reads what all contexts begin with once, and a context with several continuations once for all of them."""
    by_context = _by_context(requests, scored)
    shared = shared_beginning(list(by_context))
    prefix = forward(model, [shared], None, keep=1)[1] if shared else None

    def ask_alone(batch: Sequence[int]) -> list[float]:
        rows = [(*requests[index].context[len(shared) :], *requests[index].continuation[:-1]) for index in batch]
        targets = [requests[index].continuation for index in batch]
        return _score(model, rows, prefix, targets).tolist()

    def ask_groups(batch: Sequence[list[int]]) -> list[float]:
        rows = [requests[indices[0]].context[len(shared) :] for indices in batch]
        logits, cache = forward(model, rows, prefix, keep=1)
        # The first tokens of all continuations are in one position's distribution; only the rest is read.
        first = logits[:, -1].float().log_softmax(-1).double()
        pairs = [(row, index) for row, indices in enumerate(batch) for index in indices]
        scores = {index: first[row, requests[index].continuation[0]] for row, index in pairs}
        longer = [(row, index) for row, index in pairs if len(requests[index].continuation) > 1]
        for part in chunks(longer, size):
            tails = [requests[index].continuation for _, index in part]
            logits, _ = forward(model, [tail[:-1] for tail in tails], cache.select([row for row, _ in part]))
            for (_, index), rest in zip(part, _sums(logits, [tail[1:] for tail in tails]), strict=True):
                scores[index] = scores[index] + rest
        return torch.stack(list(scores.values())).tolist()

    alone = [indices[0] for indices in by_context.values() if len(indices) == 1]
    for batch in chunks_by_length(alone, size, {index: len(requests[index]) for index in alone}):
        yield batch, partial(ask_alone, batch)
    groups = [indices for indices in by_context.values() if len(indices) > 1]
    for batch in chunks(sorted(groups, key=lambda indices: -len(requests[indices[0]].context)), size):
        yield [index for indices in batch for index in indices], partial(ask_groups, batch)


def _by_context(requests: Sequence[Request], scored: Sequence[int]) -> dict[Ids, list[int]]:
    by_context: dict[Ids, list[int]] = {}
    for index in scored:
        by_context.setdefault(requests[index].context, []).append(index)
    return by_context


def _score(model: PreTrainedModel, rows: Sequence[Ids], prefix: KeyValueCache | None, targets: Sequence[Ids]) -> Tensor:
    """Reads rows and sums the log-probabilities of what each should end in; the head is asked slice by slice."""
    longest, width = max(map(len, targets)), max(map(len, rows))
    slice_of = max(1, LOGITS_AT_ONCE // (len(rows) * model.config.get_text_config().vocab_size))
    if longest <= slice_of or not keeps_few(model):
        return _sums(forward(model, rows, prefix, keep=longest)[0][:, -longest:], targets)
    parts = []
    with reading_once(model):
        for start in range(0, longest, slice_of):
            stop = min(start + slice_of, longest)
            keep = torch.arange(width - longest + start, width - longest + stop, device=model.device)
            wanted = [ids[max(0, len(ids) - longest + start) : max(0, len(ids) - longest + stop)] for ids in targets]
            parts.append(_sums(forward(model, rows, prefix, keep=keep)[0], wanted))
    return torch.stack(parts).sum(0)


def _sums(logits: Tensor, targets: Sequence[Ids]) -> Tensor:
    """Sums the log-probabilities of targets that all end at the last position: [rows, positions, words] to [rows]."""
    width = logits.shape[1]
    wanted = torch.tensor([[0] * (width - len(ids)) + list(ids) for ids in targets], device=logits.device)
    counted = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in targets], device=logits.device)
    # In float32 whatever the model computes in: bfloat16 would round a likely token's log-probability to 0. Summed in
    # float64, so that a long continuation's score does not depend on the order in which its tokens are added.
    chosen = logits.float().log_softmax(-1).gather(-1, wanted.unsqueeze(-1)).squeeze(-1)
    return chosen.where(counted == 1, 0.0).double().sum(-1)

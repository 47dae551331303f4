"""Log-likelihoods and greedy completions: what every question to a language model comes down to.

Contexts that share a beginning (few-shot examples), and continuations that share a context (the choices of one
question), have the shared part computed once, in the key-value cache. The result is that of scoring every pair alone.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spunge.errors import DataError
from spunge.interfaces import Progress, silent

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

Ids = tuple[int, ...]

_WORTH_SHARING = 8
"""A shared beginning of fewer tokens is cheaper to compute again than to copy into every row's cache."""


@dataclass(frozen=True)
class Request:
    """Asks for the log-likelihood of `continuation` after `context`, both as token ids."""

    context: Ids
    continuation: Ids


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[Ids]:
    """Tokenises texts that will be read on from: with the token that begins a text, without one that ends it."""
    bos, eos, end = tokenizer.bos_token, tokenizer.eos_token, tokenizer.eos_token_id
    begun = [bool(bos) and text.startswith(str(bos)) for text in texts]
    encoded: list[Ids] = [()] * len(texts)
    for special in (True, False):
        chosen = [index for index, has in enumerate(begun) if has != special]
        if chosen:
            ids = tokenizer([texts[index] for index in chosen], add_special_tokens=special, verbose=False)["input_ids"]
            for index, row in zip(chosen, ids, strict=True):  # pyright: ignore[reportArgumentType]
                ended = special and len(row) > 1 and row[-1] == end and not texts[index].endswith(str(eos))
                encoded[index] = tuple(row[:-1] if ended else row)
    return encoded


def encode_pairs(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]]) -> list[Request]:
    """Tokenises contexts and their continuations, each pair as one text that is cut where the context ends.

    Blanks at the end of a context belong to the continuation, as words carry their blank before them. An empty
    context becomes the token that begins a text.
    """
    moved = []
    for context, continuation in pairs:
        head = context.rstrip()
        moved.append((head, context[len(head) :] + continuation))
    texts = list(dict.fromkeys(text for head, tail in moved if head for text in (head, head + tail)))
    ids = dict(zip(texts, encode(tokenizer, texts), strict=True)) if texts else {}
    requests = []
    for head, tail in moved:
        if head:
            requests.append(Request(ids[head], ids[head + tail][len(ids[head]) :]))
        else:
            alone = tokenizer.encode(tail, add_special_tokens=False, verbose=False)
            requests.append(Request((beginning(tokenizer),), tuple(alone)))
    return requests


def beginning(tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns the token that stands before a text: the beginning-of-text token, or else the end-of-text token."""
    token = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if token is None:
        raise DataError("the tokenizer has neither a beginning- nor an end-of-text token to put before a text")
    return int(token)  # pyright: ignore[reportArgumentType]


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Returns every token that ends a text, by the tokenizer and by the model's generation settings."""
    settings = model.generation_config
    ends: list[Any] = [tokenizer.eos_token_id, settings.eos_token_id if settings else None]
    return frozenset(
        int(token) for end in ends for token in (end if isinstance(end, list) else [end]) if token is not None
    )


def window(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns how many tokens the model can read at once."""
    if (stated := stated_window(model.config)) is not None:
        return stated
    return tokenizer.model_max_length if tokenizer.model_max_length < 10**9 else 2048


def stated_window(config: PreTrainedConfig) -> int | None:
    """Returns how many tokens a model can read at once by its configuration; None where that does not say."""
    text = config.get_text_config()
    lengths = (getattr(text, name, None) for name in ("n_positions", "max_position_embeddings", "n_ctx"))
    return next((int(length) for length in lengths if length is not None), None)


def fit(request: Request, length: int) -> tuple[Request, bool]:
    """Cuts a request from the left to what a model of this window can read; says whether anything was cut."""
    excess = len(request.context) + len(request.continuation) - (length + 1)
    if excess <= 0:
        return request, False
    if excess < len(request.context):
        return Request(request.context[excess:], request.continuation), True
    kept = request.continuation[excess - len(request.context) + 1 :]
    return Request(request.continuation[excess - len(request.context) :][:1], kept), True


def requests(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]]
) -> list[Request]:
    """Tokenises contexts and their continuations, cut from the left to what the model can read."""
    longest = window(model, tokenizer)
    return [fit(request, longest)[0] for request in encode_pairs(tokenizer, pairs)]


@torch.inference_mode()
def loglikelihoods(
    model: PreTrainedModel,
    requests: Sequence[Request],
    *,
    batch_size: int,
    progress: Progress = silent,
    what: str = "scoring",
    scratch: Path | None = None,
) -> list[float]:
    """Returns the natural-log likelihood of every continuation, in the order of the requests.

    Args:
        model: A causal language model in eval mode.
        requests: Every context holds a token at least; an empty continuation scores 0.
        batch_size: How many rows go through the model at once.
        progress: Told after every batch.
        what: The name of the work, for `progress`.
        scratch: Where finished batches of this model are kept, so that a killed attempt goes on where it was.
    """
    scores = [0.0] * len(requests)
    if not any(request.continuation for request in requests):
        return scores
    device = next(model.parameters()).device
    by_context: dict[Ids, list[int]] = {}
    for index, request in enumerate(requests):
        if request.continuation:
            by_context.setdefault(request.context, []).append(index)
    longest = max(len(request.context) + len(request.continuation) for request in requests)
    total = sum(len(indices) for indices in by_context.values())
    done = 0
    kept = Kept(scratch, what, batch_size, requests)

    def note(indices: Iterable[int], values: Iterable[float]) -> None:
        nonlocal done
        for index, value in zip(indices, values, strict=True):
            scores[index] = value
            done += 1
        progress(what, done, total)

    if not _can_share(model, longest):
        order = sorted((i for indices in by_context.values() for i in indices), key=lambda i: -_length(requests[i]))
        for batch in _chunks(order, batch_size):
            note(batch, kept.or_else(partial(_score_plainly, model, [requests[index] for index in batch], device)))
        return scores

    shared = _shared_beginning(list(by_context))
    prefix = _Cache.of(model, shared, device) if shared else None

    def ask_alone(batch: Sequence[int]) -> list[float]:
        rows = [(*requests[index].context[len(shared) :], *requests[index].continuation[:-1]) for index in batch]
        targets = [requests[index].continuation for index in batch]
        logits, _ = _forward(model, rows, prefix, device, keep=max(map(len, targets)))
        return _sums(logits[:, -max(map(len, targets)) :], targets).tolist()

    def ask_groups(batch: Sequence[list[int]]) -> list[float]:
        rows = [requests[indices[0]].context[len(shared) :] for indices in batch]
        logits, cache = _forward(model, rows, prefix, device, keep=1)
        first = logits[:, -1].float().log_softmax(-1).double()
        values = {
            index: first[row, requests[index].continuation[0]] for row, indices in enumerate(batch) for index in indices
        }
        longer = [
            (row, index)
            for row, indices in enumerate(batch)
            for index in indices
            if len(requests[index].continuation) > 1
        ]
        for part in _chunks(longer, batch_size):
            tails = [requests[index].continuation for _, index in part]
            logits, _ = _forward(model, [tail[:-1] for tail in tails], cache.select([row for row, _ in part]), device)
            for (_, index), rest in zip(part, _sums(logits, [tail[1:] for tail in tails]), strict=True):
                values[index] = values[index] + rest
        return torch.stack(list(values.values())).tolist()

    alone = [indices[0] for indices in by_context.values() if len(indices) == 1]
    alone.sort(key=lambda index: -_length(requests[index]))
    for batch in _chunks(alone, batch_size):
        note(batch, kept.or_else(partial(ask_alone, batch)))
    groups = [indices for indices in by_context.values() if len(indices) > 1]
    groups.sort(key=lambda indices: -len(requests[indices[0]].context))
    for batch in _chunks(groups, batch_size):
        note([index for indices in batch for index in indices], kept.or_else(partial(ask_groups, batch)))
    return scores


@dataclass(frozen=True)
class TokenScores:
    """What a model thought of each token of a continuation before it read it."""

    loglikelihoods: list[float]
    """Natural-log probability of the token."""
    means: list[float]
    """The mean natural-log probability of a word drawn from the model at this place."""
    deviations: list[float]
    """Its standard deviation."""
    greedy: list[bool]
    """Whether the token was the likeliest."""


@torch.inference_mode()
def token_scores(
    model: PreTrainedModel,
    requests: Sequence[Request],
    *,
    batch_size: int,
    progress: Progress = silent,
    what: str = "scoring",
    scratch: Path | None = None,
) -> list[TokenScores]:
    """Returns the scores of every token of every continuation; see `loglikelihoods` for the arguments."""
    device = next(model.parameters()).device
    scores = [TokenScores([], [], [], [])] * len(requests)
    order = sorted(range(len(requests)), key=lambda index: -_length(requests[index]))
    done = 0
    kept = Kept(scratch, what, batch_size, requests)

    def ask(batch: Sequence[int]) -> list[dict[str, Any]]:
        logits = _read_plainly(model, [requests[index] for index in batch], device)
        answers = []
        for row, index in enumerate(batch):
            context, continuation = requests[index].context, requests[index].continuation
            logs = logits[row, len(context) - 1 : len(context) - 1 + len(continuation)].float().log_softmax(-1)
            shares = logs.exp()
            means = (shares * logs).sum(-1)
            spread = ((shares * logs.square()).sum(-1) - means.square()).clamp(min=0).sqrt()
            wanted = torch.tensor(continuation, device=device)
            chosen = logs.gather(-1, wanted.unsqueeze(-1)).squeeze(-1)
            greedy = logs.argmax(-1) == wanted
            found = {"loglikelihoods": chosen, "means": means, "deviations": spread, "greedy": greedy}
            answers.append({name: values.tolist() for name, values in found.items()})
        return answers

    for batch in _chunks([index for index in order if requests[index].continuation], batch_size):
        for index, found in zip(batch, kept.or_else(partial(ask, batch)), strict=True):
            scores[index] = TokenScores(**found)
        done += len(batch)
        progress(what, done, len(requests))
    return scores


@torch.inference_mode()
def complete(
    model: PreTrainedModel,
    prompts: Sequence[Ids],
    *,
    max_new_tokens: int,
    stop: Collection[int],
    batch_size: int,
    progress: Progress = silent,
    what: str = "generating",
    scratch: Path | None = None,
) -> list[Ids]:
    """Returns the greedy completion of every prompt, in the order of the prompts.

    Decoding is by the logits alone: no penalty or temperature of the model's own generation settings applies.

    Args:
        model: A causal language model in eval mode.
        prompts: Token ids, at least one each.
        max_new_tokens: Where a completion ends at the latest.
        stop: A completion ends after the first of these tokens, which it keeps.
        batch_size: How many prompts go through the model at once.
        progress: Told after every batch.
        what: The name of the work, for `progress`.
        scratch: Where finished batches of this model are kept, so that a killed attempt goes on where it was.
    """
    device = next(model.parameters()).device
    completions: list[Ids] = [()] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    shared = _can_share(model, max(map(len, prompts), default=0) + max_new_tokens)
    ask = _complete if shared else _complete_plainly
    done = 0
    kept = Kept(scratch, what, batch_size, [max_new_tokens, sorted(stop), *prompts])
    for batch in _chunks(order, batch_size):
        rows = [prompts[index] for index in batch]
        for index, ids in zip(
            batch, kept.or_else(partial(ask, model, rows, max_new_tokens, stop, device)), strict=True
        ):
            completions[index] = tuple(ids)
        done += len(batch)
        progress(what, done, len(prompts))
    return completions


def answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, requests: Sequence[Request], **options: Any
) -> list[str]:
    """Returns what the model says by itself after every context, never longer than the continuation."""
    written = complete(
        model,
        [request.context for request in requests],
        max_new_tokens=max(len(request.continuation) for request in requests),
        stop=end_tokens(model, tokenizer),
        **options,
    )
    return [
        str(tokenizer.decode(list(ids[: len(request.continuation)]), skip_special_tokens=True))
        for ids, request in zip(written, requests, strict=True)
    ]


class Kept:
    """The answers of finished batches, as JSON lines in a scratch directory, for whoever is asked the same again.

    The next batch gets the next line, so batches must come in the same order; their size and everything asked are in
    the file's name. Without a scratch directory nothing is kept.
    """

    def __init__(self, scratch: Path | None, what: str, batch_size: int, asked: Sequence[Any]) -> None:
        self._answers: deque[Any] = deque()
        self._file: Path | None = None
        if scratch is None:
            return
        name = hashlib.sha256(f"{what}:{batch_size}".encode())
        for one in asked:
            name.update(repr(one).encode())
        scratch.mkdir(parents=True, exist_ok=True)
        self._file = scratch / f"{name.hexdigest()[:16]}.jsonl"
        if self._file.exists():
            whole = self._file.read_bytes().rpartition(b"\n")[0].splitlines()  # a kill may have torn the last line
            self._answers.extend(json.loads(line) for line in whole)
            os.truncate(self._file, sum(len(line) + 1 for line in whole))

    def or_else(self, ask: Callable[[], list[Any]]) -> list[Any]:
        """Returns the kept answers of the next batch, or else asks, and keeps what comes."""
        if self._answers:
            return self._answers.popleft()
        answers = ask()
        if self._file is not None:
            with self._file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(answers) + "\n")
        return answers


def _complete(
    model: PreTrainedModel, prompts: Sequence[Ids], max_new_tokens: int, stop: Collection[int], device: torch.device
) -> list[Ids]:
    written: list[list[int]] = [[] for _ in prompts]
    active = list(range(len(prompts)))
    rows: list[Ids] = list(prompts)
    cache = None
    for _ in range(max_new_tokens):
        logits, cache = _forward(model, rows, cache, device, keep=1)
        chosen = logits[:, -1].argmax(-1).tolist()
        for index, token in zip(active, chosen, strict=True):
            written[index].append(token)
        going = [row for row, token in enumerate(chosen) if token not in stop]
        if not going:
            break
        if len(going) < len(active):
            cache = cache.select(going)
        active = [active[row] for row in going]
        rows = [(chosen[row],) for row in going]
    return [tuple(ids) for ids in written]


def _complete_plainly(
    model: PreTrainedModel, prompts: Sequence[Ids], max_new_tokens: int, stop: Collection[int], device: torch.device
) -> list[Ids]:
    """Reads the whole text again for every token, one prompt at a time: slow, and right for every architecture."""
    written = []
    for prompt in prompts:
        ids = list(prompt)
        while len(ids) < len(prompt) + max_new_tokens and not (len(ids) > len(prompt) and ids[-1] in stop):
            ids.append(int(model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0, -1].argmax()))
        written.append(tuple(ids[len(prompt) :]))
    return written


@dataclass(frozen=True, eq=False)
class _Cache:
    """Keys and values of what was read, with the mask of its padding."""

    layers: list[tuple[Tensor, Tensor]]
    mask: Tensor
    """[rows, length], 1 for a token, 0 for padding."""

    @classmethod
    def of(cls, model: PreTrainedModel, ids: Ids, device: torch.device) -> _Cache:
        return _forward(model, [ids], None, device, keep=1)[1]

    def select(self, rows: Sequence[int]) -> _Cache:
        index = torch.tensor(rows, device=self.mask.device)
        return _Cache([(keys[index], values[index]) for keys, values in self.layers], self.mask[index])


def _forward(
    model: PreTrainedModel, rows: Sequence[Ids], cache: _Cache | None, device: torch.device, keep: int = 0
) -> tuple[Tensor, _Cache]:
    """Reads rows, padded on the left, after a cache of one row (for all) or as many; keeps the last `keep` logits."""
    from transformers import DynamicCache

    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    options: dict[str, Any] = {}
    if cache is None:
        past = DynamicCache()
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
    else:
        count = len(rows)
        past = DynamicCache([(k.expand(count, -1, -1, -1), v.expand(count, -1, -1, -1)) for k, v in cache.layers])
        read = cache.mask.expand(count, -1)
        positions = (mask.cumsum(-1) - 1).clamp(min=0) + read.sum(-1, keepdim=True)
        mask = torch.cat([read, mask], dim=-1)
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        options["logits_to_keep"] = keep
    output = model(
        input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=past, use_cache=True, **options
    )
    layers = [(entry[0], entry[1]) for entry in output.past_key_values]
    return output.logits, _Cache(layers, mask)


def _sums(logits: Tensor, targets: Sequence[Ids]) -> Tensor:
    """Sums the log-probabilities of targets that all end at the last position: [rows, positions, words] to [rows]."""
    width = logits.shape[1]
    wanted = torch.tensor([[0] * (width - len(ids)) + list(ids) for ids in targets], device=logits.device)
    counted = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in targets], device=logits.device)
    chosen = logits.float().log_softmax(-1).gather(-1, wanted.unsqueeze(-1)).squeeze(-1)
    return chosen.where(counted == 1, 0.0).double().sum(-1)


def _read_plainly(model: PreTrainedModel, requests: Sequence[Request], device: torch.device) -> Tensor:
    """Reads whole texts, padded on the right: right for every architecture, recurrent ones too."""
    rows = [(*request.context, *request.continuation[:-1]) for request in requests]
    width = max(map(len, rows))
    ids = torch.tensor([list(row) + [0] * (width - len(row)) for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    return model(input_ids=ids, attention_mask=mask, use_cache=False).logits


def _score_plainly(model: PreTrainedModel, requests: Sequence[Request], device: torch.device) -> list[float]:
    logits = _read_plainly(model, requests, device)
    scores = []
    for row, request in enumerate(requests):
        start = len(request.context) - 1
        scores.append(_sums(logits[None, row, start : start + len(request.continuation)], [request.continuation]))
    return torch.cat(scores).tolist()


def _can_share(model: PreTrainedModel, longest: int) -> bool:
    """Whether this model's memory of a text is one key and value a token, at positions that can be given."""
    config = model.config.get_text_config()
    windows = [size for name in ("sliding_window", "attention_chunk_size") if (size := getattr(config, name, None))]
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return (
        "position_ids" in inspect.signature(model.forward).parameters
        and not model._is_stateful
        and kinds <= {"full_attention", "sliding_attention", "chunked_attention"}
        and all(longest <= size for size in windows)
    )


def _shared_beginning(contexts: Sequence[Ids]) -> Ids:
    """Returns what all contexts begin with, short of the last token of the shortest."""
    if len(contexts) < 2:
        return ()
    low, high = min(contexts), max(contexts)
    most = min(map(len, contexts)) - 1
    length = next((i for i in range(most) if low[i] != high[i]), most)
    return low[:length] if length >= _WORTH_SHARING else ()


def _length(request: Request) -> int:
    return len(request.context) + len(request.continuation)


def _chunks(things: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (things[start : start + size] for start in range(0, len(things), size))

"""Texts as the tokens that a model is asked about: contexts, continuations, and what of them fits its window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spunge.errors import DataError
from spunge.weights.tokens import tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

Ids = tuple[int, ...]

_NO_LIMIT = 10**9
"""Tokenizers without a limit of their own state one of 10^30."""
_GUESSED_WINDOW = 2048
_WORTH_SHARING = 8
"""A shared beginning of fewer tokens is cheaper to compute again than to copy into every row's cache."""


@dataclass(frozen=True)
class Request:
    """Asks for the log-likelihood of `continuation` after `context`, both as token ids."""

    context: Ids
    continuation: Ids

    def __len__(self) -> int:
        return len(self.context) + len(self.continuation)


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[Ids]:
    """Tokenises texts that will be read on from: with the token that begins a text, without one that ends it."""
    # Some tokenizers end every text (add_eos_token): what is read on from must not have ended.
    eos, end = tokenizer.eos_token, tokenizer.eos_token_id
    return [
        tuple(row[:-1] if len(row) > 1 and row[-1] == end and not text.endswith(str(eos)) else row)
        for text, row in zip(texts, tokenize(tokenizer, texts), strict=True)
    ]


def encode_from_start(tokenizer: PreTrainedTokenizerBase, text: str) -> Ids:
    """Tokenises a text that is scored from its first token on: behind the token that begins a text, once."""
    first = beginning_token(tokenizer)
    ids = tuple(tokenizer.encode(text, add_special_tokens=False, verbose=False))
    return ids if ids[:1] == (first,) else (first, *ids)


def encode_pairs(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]]) -> list[Request]:
    """Tokenises contexts and their continuations, each pair as one text that is cut where the context ends.

    Blanks at the end of a context belong to the continuation, as words carry their blank before them. An empty
    context becomes the token that begins a text. So far as lm-eval does; but where the two merge (the pair's tokens do
    not begin with the context's, as with no delimiter, in Chinese or in code), the cut would leave part of the
    continuation or nothing of it to score, and nothing is certain. There the two are tokenised apart.
    """
    moved = []
    for context, continuation in pairs:
        head = context.rstrip()
        moved.append((head, context[len(head) :] + continuation))
    texts = list(dict.fromkeys(text for head, tail in moved if head for text in (head, head + tail)))
    ids = dict(zip(texts, encode(tokenizer, texts), strict=True)) if texts else {}
    requests = []
    for head, tail in moved:
        if not head:
            whole = encode_from_start(tokenizer, tail)
            requests.append(Request(whole[:1], whole[1:]))
            continue
        context, whole = ids[head], ids[head + tail]
        if len(whole) > len(context) and whole[: len(context)] == context:
            requests.append(Request(context, whole[len(context) :]))
        else:
            requests.append(Request(context, tuple(tokenizer.encode(tail, add_special_tokens=False, verbose=False))))
    return requests


def fit_to_window(request: Request, length: int) -> tuple[Request, bool]:
    """Cuts a request from the left to what a model of this window can read; says whether anything was cut.

    The last token is asked for and never read, so a request may be one token longer than the window.
    """
    excess = len(request) - (length + 1)
    if excess <= 0:
        return request, False
    if excess < len(request.context):
        return Request(request.context[excess:], request.continuation), True
    # Not even the continuation fits: its last tokens are scored, behind the one before them.
    rest = request.continuation[excess - len(request.context) + 1 :]
    return Request(request.continuation[excess - len(request.context) :][:1], rest), True


def shared_beginning(contexts: Sequence[Ids]) -> Ids:
    """Returns what all contexts begin with, short of the last token of the shortest, whose logits are wanted."""
    if len(contexts) < 2:
        return ()
    # Of a sorted list, what the first and the last share, all share.
    low, high = min(contexts), max(contexts)
    most = min(map(len, contexts)) - 1
    length = next((i for i in range(most) if low[i] != high[i]), most)
    return low[:length] if length >= _WORTH_SHARING else ()


def beginning_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns the token that stands before a text: the beginning-of-text token, or else the end-of-text token.

    Raises:
        DataError: The tokenizer has neither.
    """
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


def context_window(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns how many tokens the model can read at once."""
    if (stated := stated_window(model.config)) is not None:
        return stated
    return tokenizer.model_max_length if tokenizer.model_max_length < _NO_LIMIT else _GUESSED_WINDOW


def stated_window(config: PreTrainedConfig) -> int | None:
    """Returns how many tokens a model can read at once by its configuration; None where that does not say."""
    text = config.get_text_config()
    lengths = (getattr(text, name, None) for name in ("n_positions", "max_position_embeddings", "n_ctx"))
    return next((int(length) for length in lengths if length is not None), None)

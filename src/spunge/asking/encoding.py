"""Texts as the tokens that a model is asked about: contexts, continuations, and what of them fits its window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spunge.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

Ids = tuple[int, ...]

_NO_LIMIT = 10**9
"""Tokenizers without a limit of their own state one of 10^30."""
_GUESSED_WINDOW = 2048


@dataclass(frozen=True)
class Request:
    """Asks for the log-likelihood of `continuation` after `context`, both as token ids."""

    context: Ids
    continuation: Ids

    def __len__(self) -> int:
        return len(self.context) + len(self.continuation)


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[Ids]:
    """Tokenises texts that will be read on from: with the token that begins a text, without one that ends it."""
    bos, eos, end = tokenizer.bos_token, tokenizer.eos_token, tokenizer.eos_token_id
    # A chat template writes the beginning itself; the tokenizer would add a second one.
    begun = [bool(bos) and text.startswith(str(bos)) for text in texts]
    encoded: list[Ids] = [()] * len(texts)
    for special in (True, False):
        chosen = [index for index, has_bos in enumerate(begun) if has_bos != special]
        if chosen:
            ids = tokenizer([texts[index] for index in chosen], add_special_tokens=special, verbose=False)["input_ids"]
            for index, row in zip(chosen, ids, strict=True):  # pyright: ignore[reportArgumentType]
                ended = special and len(row) > 1 and row[-1] == end and not texts[index].endswith(str(eos))
                encoded[index] = tuple(row[:-1] if ended else row)
    return encoded


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
        context = ids[head] if head else (beginning_token(tokenizer),)
        if head and len(whole := ids[head + tail]) > len(context) and whole[: len(context)] == context:
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
    rest = request.continuation[excess - len(request.context) + 1 :]
    return Request(request.continuation[excess - len(request.context) :][:1], rest), True


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

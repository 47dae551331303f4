"""Texts as token ids: the one place that knows who writes the tokens that begin a text, and that they come once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, max_length: int | None = None
) -> list[list[int]]:
    """Returns the token ids of every text, with what the tokenizer puts before and behind a text.

    A text that begins with these tokens already, as a conversation does that a chat template wrote out, gets no second
    ones: its ids are those of `apply_chat_template(tokenize=True)`.

    Args:
        tokenizer: The model's.
        texts: What to tokenise.
        max_length: Where ids are cut, as the tokenizer cuts them.
    """
    if not texts:
        return []
    cut: dict[str, Any] = {} if max_length is None else {"truncation": True, "max_length": max_length}
    rows = _ids(tokenizer, texts, **cut)
    prefix = beginning(tokenizer)
    count = len(prefix)
    twice = [index for index, row in enumerate(rows) if count and row[count : 2 * count] == prefix]
    if twice and max_length is not None:  # what goes must not count towards the length
        longer = _ids(tokenizer, [texts[index] for index in twice], truncation=True, max_length=max_length + count)
        for index, row in zip(twice, longer, strict=True):
            rows[index] = row
    for index in twice:
        rows[index] = rows[index][count:]
    return rows


def beginning(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns the tokens that the tokenizer puts before every text: one, several as GLM's does, or none."""
    (plain,), (whole,) = _ids(tokenizer, ["a"], add_special_tokens=False), _ids(tokenizer, ["a"])
    return whole[: whole.index(plain[0])] if plain and plain[0] in whole else []


def _ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], **options: Any) -> list[list[int]]:
    encoded: Any = tokenizer(list(texts), verbose=False, **options)
    return encoded["input_ids"]

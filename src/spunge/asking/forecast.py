"""What asking a language model takes: memory, disk and operations, from its configuration and the length of texts."""

from __future__ import annotations

from collections.abc import Sequence

from spunge.interfaces import Forecast
from spunge.weights.language_model import LanguageModel
from spunge.weights.shape import shape_of, token_counts

_TABLE, _ITEM = 2**12, 60
"""Bytes of a table of items, and of an item's metrics in it."""
_UNKNOWN = 512
"""Tokens of a row where nobody knows the rows."""


def forecast_asking(
    model: LanguageModel, texts: Sequence[str], *, batch_size: int, written: int = 0, rounds: int = 1
) -> Forecast:
    """Says what it takes to have a model read texts, and write so many tokens after each.

    Args:
        model: The model that is asked.
        texts: What it reads; none where that is not known, and then neither is how long it takes.
        batch_size: How many texts go through the model at once.
        written: Tokens that it writes after each text.
        rounds: How many times all of them are asked.
    """
    shape = shape_of(model)
    lengths = token_counts(texts)
    longest = max(lengths, default=_UNKNOWN) + written
    # The cache, the hidden states of one layer, and the logits of as many positions as an answer has.
    batch = longest * (shape.cached * shape.bytes + 8 * shape.width) + max(written, 32) * shape.vocabulary * 4
    operations = 2.0 * shape.inner * (sum(lengths) + written * len(lengths)) * rounds
    return Forecast(
        memory=shape.parameters * shape.bytes + batch_size * batch,
        disk=_TABLE + (_ITEM + 2 * written) * len(lengths) * rounds,
        operations=operations if texts else None,
    )

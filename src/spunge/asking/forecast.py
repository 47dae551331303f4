"""What asking a language model takes: memory, disk and operations, from its configuration and the length of texts."""

from __future__ import annotations

from collections.abc import Sequence

from spunge.asking.batching import LOGITS_AT_ONCE, READ_AT_ONCE, TOKENS_AT_ONCE, WRITTEN_AT_ONCE
from spunge.interfaces import Forecast
from spunge.memory import available
from spunge.weights.language_model import LanguageModel
from spunge.weights.shape import shape_of, token_counts

_TABLE, _ITEM = 2**12, 60
"""Bytes of a table of items, and of an item's metrics in it."""
_UNKNOWN = 512
"""Tokens of a row where nobody knows the rows."""


def forecast_asking(
    model: LanguageModel,
    texts: Sequence[str],
    *,
    batch_size: int | None,
    scored: int | None = 1,
    written: int = 0,
    prefix: str = "",
) -> Forecast:
    """Says what it takes to have a model read texts, and write so many tokens after each.

    Args:
        model: The model that is asked.
        texts: What it reads; none where that is not known, and then neither is how long it takes.
        batch_size: How many texts go through the model at once; None: as many as `Batching` takes then.
        scored: Tokens of each text whose logits are kept at once; None: those of the whole text.
        written: Tokens that it writes after each text.
        prefix: What all texts begin with: read once, and held for every text of a batch.
    """
    shape = shape_of(model)
    lengths = [min(length, shape.window) for length in token_counts(model, texts)]
    shared = token_counts(model, [prefix])[0] if prefix else 0
    longest = min(max(lengths, default=_UNKNOWN) + shared + written, shape.window)
    rows = min(len(texts) or WRITTEN_AT_ONCE, batch_size or (WRITTEN_AT_ONCE if written else READ_AT_ONCE))
    if not written:
        rows = max(1, min(rows, TOKENS_AT_ONCE // longest))
    # Of every token its keys and values, and one layer's states; logits twice, as they come and as log-softmax.
    cached = rows * longest * shape.cached * shape.bytes
    if written and batch_size is None:
        cached = min(cached, available() // 4)
    states = min(rows * longest, max(TOKENS_AT_ONCE, longest)) * shape.activations * shape.bytes
    asked = min(rows * min(longest, scored or longest) * shape.vocabulary, max(LOGITS_AT_ONCE, shape.vocabulary))
    logits = asked * (4 + max(4, shape.bytes + 4 * (shape.bytes < 4)))
    batches = -(-len(texts) // rows)
    return Forecast(
        memory=shape.parameters * shape.bytes + cached + states + logits,
        disk=_TABLE + (_ITEM + 2 * written) * len(lengths),
        operations=2.0 * shape.inner * (shared + sum(lengths) + written * len(lengths)) if texts else None,
        calls=shape.layers * batches * (1 + written),
    )

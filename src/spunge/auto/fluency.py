"""Whether a model still writes language: what it says after the beginnings of texts, by its loops and by the base."""

from __future__ import annotations

import math
from typing import ClassVar

from pydantic import Field

from spunge.evaluators.toxicity import is_degenerate
from spunge.interfaces import Evaluator, LoadedVariant, Work
from spunge.metrics import Metric
from spunge.rows.items import ItemTable, Measurement, RowSettings, item_table, suite_items
from spunge.rows.sources import Source

FLOOR = 0.2
"""More completions than the base model's that are no language, as a share, and a model is useless."""


class Fluency(RowSettings, Evaluator):
    """Counts completions that are no language: loops, signs alone, or words that the base model finds absurd.

    Absurd is what costs the base model more than half of what a uniform guess among its words would: salad that no
    loop gives away.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("broken", "completions that are no language", "broken", share=True, better="low"),
    )

    sources: tuple[Source, ...]
    """Rows with a `text`, or a `prompt`."""
    words: int = Field(default=8, ge=1)
    """How many of a text's first words are its beginning."""
    max_new_tokens: int = Field(default=24, ge=1)
    """The longest completion, in tokens."""

    def evaluate(self, variant: LoadedVariant, work: Work) -> ItemTable:
        """Returns `broken` and the completion of every row."""
        from spunge.asking.batching import Batching
        from spunge.asking.completions import complete
        from spunge.asking.encoding import Request, encode_from_start, end_tokens
        from spunge.asking.likelihoods import loglikelihoods

        loaded = suite_items(self)
        model, tokenizer = variant.model, variant.tokenizer
        prompts = [encode_from_start(tokenizer, self._beginning(item.row)) for item in loaded]
        batching = Batching(16, work.progress)
        written = complete(
            model, prompts, batching, max_new_tokens=self.max_new_tokens, stop=end_tokens(model, tokenizer)
        )
        if variant.at is not None:  # the base model reads what the variant wrote
            model = variant.at(0.0)
        try:
            asked = [Request(prompt, ids) for prompt, ids in zip(prompts, written, strict=True) if ids]
            scores = iter(loglikelihoods(model, asked, batching, what=self.suite))
            surprise = [-next(scores) / len(ids) if ids else 0.0 for ids in written]
        finally:
            if variant.at is not None:
                variant.at(1.0)
        absurd = math.log(model.config.get_text_config().vocab_size) / 2
        measured = []
        for item, ids, nats in zip(loaded, written, surprise, strict=True):
            text = str(tokenizer.decode(list(ids), skip_special_tokens=True))
            # NaN is no language either.
            broken = is_degenerate(text) or not nats <= absurd
            measured.append(Measurement(item, self.suite, {"broken": float(broken)}, {"completion": text}))
        return item_table(self.suite, measured)

    def _beginning(self, row: object) -> str:
        assert isinstance(row, dict)
        text = row.get("prompt") or row.get("text") or ""
        return " ".join(str(text).split()[: self.words])

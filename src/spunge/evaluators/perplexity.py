"""Perplexity of a text set: how surprised the model is by text that it should still know, or should no longer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from spunge.asking.forecast import forecast_asking
from spunge.errors import DataError
from spunge.interfaces import Evaluator, Forecast, LoadedVariant, Work
from spunge.metrics import TEXT_PERPLEXITY, Metric
from spunge.rows.items import NAN, ItemTable, Measurement, RowSettings, item_table, suite_items
from spunge.rows.sources import Source

if TYPE_CHECKING:
    from spunge.weights.language_model import LanguageModel


class Perplexity(RowSettings, Evaluator):
    """Measures the negative log-likelihood of every row's text, read in overlapping windows.

    The items hold `nll` (natural log, summed) and `tokens`, so that a set's perplexity is exp(Σ nll / Σ tokens), and
    each row's own `perplexity`.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (TEXT_PERPLEXITY,)
    in_part: ClassVar[bool] = True
    outside_key: ClassVar[frozenset[str]] = frozenset({"batch_size"})

    method: Literal["perplexity"] = "perplexity"
    sources: tuple[Source, ...]
    """Rows with a `text`."""
    window: int | None = Field(default=None, ge=2)
    """How many tokens the model reads at once; its own window by default."""
    stride: int | None = Field(default=None, ge=1)
    """How many new tokens each window adds after the first; half a window by default."""
    batch_size: int = Field(default=8, ge=1)
    """How many windows go through the model at once."""

    def check(self) -> None:
        """Refuses rows without a text."""
        suite_items(self, "text")

    def forecast(self, base: LanguageModel) -> Forecast:
        """Says what reading every text takes."""
        texts = [str(item.row["text"]) for item in suite_items(self, "text")]
        return forecast_asking(base, texts, batch_size=self.batch_size, scored=None)

    def evaluate(self, variant: LoadedVariant, work: Work) -> ItemTable:
        """Returns nll, tokens and perplexity of every row.

        Raises:
            DataError: A row holds no text, or the window is longer than the model's.
        """
        from spunge.asking.batching import Batching
        from spunge.asking.encoding import Request, context_window, encode_from_start
        from spunge.asking.likelihoods import loglikelihoods

        loaded = suite_items(self, "text")
        longest = context_window(variant.model, variant.tokenizer)
        window = self.window or longest
        stride = self.stride or max(window // 2, 1)
        if window > longest or stride >= window:
            raise DataError(
                f"{self.suite}: window {window} and stride {stride} do not fit a model that reads {longest} tokens"
            )
        requests, owners = [], []
        for number, item in enumerate(loaded):
            ids = encode_from_start(variant.tokenizer, str(item.row["text"]))
            if len(ids) == 1:
                raise DataError(f"{self.sources[0].path}: a row has an empty 'text'; remove it")
            parts = windows(ids, window, stride)
            requests += [Request(context, continuation) for context, continuation in parts]
            owners += [number] * len(parts)
        batching = Batching(self.batch_size, work.progress, work.scratch)
        scores = loglikelihoods(variant.model, requests, batching, what=self.suite)
        nll, tokens = [0.0] * len(loaded), [0] * len(loaded)
        for owner, request, score in zip(owners, requests, scores, strict=True):
            nll[owner] -= score
            tokens[owner] += len(request.continuation)
        return item_table(
            self.suite,
            (
                Measurement(item, self.suite, measure(nats, count), {})
                for item, nats, count in zip(loaded, nll, tokens, strict=True)
            ),
        )


def windows(ids: tuple[int, ...], window: int, stride: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Cuts ids into (context, continuation) windows that score every id but the first exactly once.

    The first window scores all it reads; each later one reads `window` ids and scores the last `stride` of them, so
    that an id has at least `window - stride` ids before it.
    """
    cuts = [(ids[:1], ids[1 : window + 1])]
    done = window + 1
    while done < len(ids):
        stop = min(done + stride, len(ids))
        cuts.append((ids[max(stop - window - 1, 0) : done], ids[done:stop]))
        done = stop
    return cuts


def measure(nll: float, tokens: int) -> dict[str, float | None]:
    """Returns the metrics of one text from its summed negative log-likelihood; no perplexity of no tokens."""
    unreadable = not math.isfinite(nll)
    return {
        "nll": None if unreadable else nll,
        "tokens": float(tokens),
        "perplexity": None if unreadable or not tokens else math.exp(min(nll / tokens, 700.0)),
        NAN: float(unreadable),
    }

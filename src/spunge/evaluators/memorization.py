"""Memorisation: how much of a text can still be had from the model, and how familiar it finds it.

Extraction strength (Wang et al., 2025), exact memorisation (Tirumala et al., 2022), ROUGE-L recall of the greedy
answer (Lin, 2004), Min-K% (Shi et al., 2024) and Min-K%++ (Zhang et al., 2024), the zlib ratio (Carlini et al., 2021).
With a column that says which rows were trained on, the last three also give areas under their ROC curves.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from spunge.asking.forecast import forecast_asking
from spunge.errors import DataError
from spunge.interfaces import Evaluator, Forecast, LoadedVariant, Work
from spunge.metrics import ROUGE_L, TEXT_PERPLEXITY, Metric
from spunge.rows.items import NAN, Item, ItemTable, Measurement, RowSettings, item_table, suite_items
from spunge.rows.sources import Source, item_id
from spunge.statistics import area_under_roc
from spunge.weights.shape import token_counts

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from spunge.asking.encoding import Request
    from spunge.asking.likelihoods import TokenScores
    from spunge.weights.language_model import LanguageModel


class Memorization(RowSettings, Evaluator):
    """Asks how much of each row's response (or text) the model knows by heart.

    A prompt is asked as training asks it: in the model's chat template where it has one, and as plain text otherwise.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("extraction_strength", "extraction strength", "extraction", share=True),
        ROUGE_L,
        Metric("exact_memorization", "tokens known by heart", "by heart", share=True),
        TEXT_PERPLEXITY,
    )
    outside_key: ClassVar[frozenset[str]] = frozenset({"batch_size"})
    version: ClassVar[int] = 3

    method: Literal["memorization"] = "memorization"
    sources: tuple[Source, ...]
    """Rows with `prompt`, `response`, perhaps `system`, or with a `text`, which is then read from its first token."""
    member: str | None = None
    """The column that says whether a row was trained on (true or false): adds `min_k_auc`, `min_k_plus_plus_auc` and
    `zlib_ratio_auc`, how often such a row seems more familiar than another, as one item of the whole set."""
    prompt: str = "{prompt}"
    """The prompt; `{prompt}` and any other column."""
    delimiter: str = " "
    """What stands between the prompt and the response where the model has no chat template."""
    lowest: float = Field(default=0.2, gt=0, le=1)
    """The share of a text's least likely tokens that Min-K% is the mean of."""
    generate: bool = True
    """Whether to write a greedy answer as long as the response, for ROUGE-L."""
    batch_size: int | None = Field(default=None, ge=1)
    """How many rows go through the model at once; by default 16, and in writing as many as suit its memory."""

    def check(self) -> None:
        """Refuses rows that cannot be asked."""
        self._load_pairs()

    def forecast(self, base: LanguageModel) -> Forecast:
        """Says what scoring every response takes, and writing an answer as long as the longest."""
        pairs = self._load_pairs()[1]
        written = max(token_counts(base, [response for _, response in pairs])) if self.generate else 0
        texts = [f"{prompt or ''} {response}" for prompt, response in pairs]
        return forecast_asking(base, texts, batch_size=self.batch_size, scored=None, written=written)

    def evaluate(self, variant: LoadedVariant, work: Work) -> ItemTable:
        """Returns the metrics of every row, and the greedy answer.

        Raises:
            DataError: A column is missing, or a response is empty.
        """
        from spunge.asking.batching import Batching
        from spunge.asking.completions import complete_requests
        from spunge.asking.likelihoods import token_scores

        loaded, pairs = self._load_pairs()
        systems = [item.row.get("system") for item in loaded]
        requests = lay_out(variant.model, variant.tokenizer, pairs, self.delimiter, systems)
        batching = Batching(self.batch_size, work.progress, work.scratch)
        scores = token_scores(variant.model, requests, batching, what=self.suite)
        written = [""] * len(loaded)
        if self.generate:
            written = complete_requests(variant.model, variant.tokenizer, requests, batching)
        measured = []
        for item, (_, response), score, answer in zip(loaded, pairs, scores, written, strict=True):
            values = measure(score, response.strip(), self.lowest)
            if self.generate:
                # A model whose logits are NaN writes its first token again and again: nobody's answer.
                values["rouge_l"] = None if values[NAN] else rouge_l(response, answer)
            measured.append(Measurement(item, self.suite, values, {"answer": answer} if self.generate else {}))
        return item_table(self.suite, [*measured, *self._areas(measured)])

    def _areas(self, measured: Sequence[Measurement]) -> list[Measurement]:
        if self.member is None:
            return []
        members = [one.item.row[self.member] for one in measured]
        if set(members) != {True, False}:
            raise DataError(
                f"{self.sources[0].path}: column {self.member!r} must hold both true and false, not "
                f"{', '.join(sorted(map(str, set(members)))[:5])}"
            )
        areas = {
            f"{metric}_auc": area_under_roc([_known(one.values[metric]) for one in measured], members)
            for metric in ("min_k", "min_k_plus_plus", "zlib_ratio")
        }
        whole = Item(item_id({"set": [one.item.id for one in measured]}), "{}", {})
        known = {name: None if math.isnan(area) else area for name, area in areas.items()}
        return [Measurement(whole, "whole set", known, {})]

    def _load_pairs(self) -> tuple[list[Item], list[tuple[str | None, str]]]:
        """The items, and each one's prompt and response; of a text, no prompt."""
        loaded = suite_items(self, *([self.member] if self.member else []))
        pairs = [self._pair(item) for item in loaded]
        if not all(text.strip() for _, text in pairs):
            raise DataError(f"{self.sources[0].path}: a row has an empty response or text; remove it")
        return loaded, pairs

    def _pair(self, item: Item) -> tuple[str | None, str]:
        row, columns = item.row, ", ".join(item.row)
        if row.get("response") is not None:
            try:
                return self.prompt.format_map(row), str(row["response"])
            except (KeyError, IndexError, ValueError) as error:
                raise DataError(f"prompt {self.prompt!r} cannot be filled: {error}; columns are {columns}") from error
        if row.get("text") is None:
            raise DataError(f"{self.sources[0].path}: a row has neither 'response' nor 'text'; columns are {columns}")
        return None, str(row["text"])


def lay_out(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str | None, str]],
    delimiter: str,
    systems: Sequence[str | None],
) -> list[Request]:
    """Returns each prompt with its response as training lays them out, cut from the left to what the model can read.

    What ends a response is not asked for. A pair without a prompt is a text, plain for every model.
    """
    from spunge.asking.encoding import Request, beginning_token, context_window, encode_pairs, fit_to_window
    from spunge.training.rows import conversations

    told = [system for system, (prompt, _) in zip(systems, pairs, strict=True) if prompt is not None]
    prompts = [prompt for prompt, _ in pairs if prompt is not None]
    responses = [response for prompt, response in pairs if prompt is not None]
    rows = iter(conversations(tokenizer, prompts, responses, systems=told, delimiter=delimiter, ended=False))
    texts = iter(encode_pairs(tokenizer, [("", text) for prompt, text in pairs if prompt is None]))

    def request(prompt: str | None) -> Request:
        if prompt is None:
            return next(texts)
        row = next(rows)
        context = row.ids[: row.start].tolist() or [beginning_token(tokenizer)]
        return Request(tuple(context), tuple(row.ids[row.start :].tolist()))

    longest = context_window(model, tokenizer)
    return [fit_to_window(request(prompt), longest)[0] for prompt, _ in pairs]


def measure(scores: TokenScores, text: str, lowest: float) -> dict[str, float | None]:
    """Returns the metrics of one text from the scores of its tokens; higher means better known, but for `nll`."""
    logs = scores.loglikelihoods
    if not all(map(math.isfinite, logs)):
        unknown = ("nll", "min_k", "min_k_plus_plus", "zlib_ratio", "exact_memorization", "extraction_strength")
        return {**dict.fromkeys(unknown), "tokens": float(len(logs)), NAN: 1.0}
    surprise = [
        (log - mean) / max(deviation, 1e-6)
        for log, mean, deviation in zip(logs, scores.means, scores.deviations, strict=True)
    ]
    return {
        "nll": -sum(logs),
        "tokens": float(len(logs)),
        "min_k": _mean_of_lowest(logs, lowest),
        "min_k_plus_plus": _mean_of_lowest(surprise, lowest),
        "zlib_ratio": sum(logs) / len(zlib.compress(text.encode())),
        "exact_memorization": sum(scores.greedy) / len(logs),
        "extraction_strength": extraction_strength(scores.greedy),
        NAN: 0.0,
    }


def extraction_strength(greedy: Sequence[bool]) -> float:
    """Returns the largest share of a text, counted from its end, that greedy decoding gives from what is before it.

    A last token that is not the likeliest makes it 0.
    """
    known = 0
    for right in reversed(greedy):
        if not right:
            break
        known += 1
    return known / len(greedy)


def rouge_l(reference: str, answer: str) -> float:
    """Returns the share of the reference's words that the answer has in the same order (ROUGE-L recall)."""
    wanted, written = reference.lower().split(), answer.lower().split()
    row = [0] * (len(written) + 1)
    for word in wanted:
        above = row
        row = [0]
        for index, other in enumerate(written):
            row.append(above[index] + 1 if word == other else max(above[index + 1], row[index]))
    return row[-1] / len(wanted) if wanted else 0.0


def _known(value: float | None) -> float:
    return math.nan if value is None else value


def _mean_of_lowest(values: Sequence[float], share: float) -> float:
    lowest = sorted(values)[: max(1, int(share * len(values)))]
    return sum(lowest) / len(lowest)

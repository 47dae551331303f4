"""TOFU's four figures: forget quality against a model that never saw the forget set, model utility, truth ratio, ROUGE.

Maini et al. 2024, "TOFU: A Task of Fictitious Unlearning for LLMs", arXiv 2401.06121, section 2.2. An answer's
probability is P(a | q)^(1/|a|) over its tokens; the truth ratio R is that of wrong answers over that of a right one in
other words. The wrong answers' mean is geometric, as the authors' code takes it (their equation 1 writes an arithmetic
one). Forget quality is the p-value of the Kolmogorov–Smirnov test that R is distributed as in the reference model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from spunge.asking.forecast import forecast_asking
from spunge.errors import DataError
from spunge.evaluators.memorization import lay_out, rouge_l
from spunge.interfaces import Evaluator, Forecast, LoadedVariant, Work
from spunge.metrics import ROUGE_L, Metric
from spunge.rows.items import NAN, Item, ItemTable, Measurement, RowSettings, item_table, suite_items
from spunge.rows.sources import Source, item_id
from spunge.statistics import kolmogorov_smirnov
from spunge.weights.language_model import LanguageModel
from spunge.weights.shape import token_counts

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Tofu(RowSettings, Evaluator):
    """Asks every question for its answer's probability, the truth ratio and the words of a greedy answer.

    A question is asked as training asks it: in the model's chat template where it has one, and as plain text otherwise.
    Two figures are of the set as a whole and stand in the table as one item: `model_utility`, the harmonic mean of
    the sets' probability, ROUGE-L recall and truthfulness max(0, 1 − R); and, with a `reference`, `forget_quality`.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("probability", "probability of the answer", share=True),
        ROUGE_L,
        Metric("truthfulness", share=True),
        Metric("truth_ratio", "truth ratio", better="gone", shown=False),
        Metric("model_utility", "model utility", share=True, better="high", shown=False),
        Metric("forget_quality", "forget quality", better="high", shown=False),
    )
    outside_key: ClassVar[frozenset[str]] = frozenset({"batch_size"})
    version: ClassVar[int] = 4

    method: Literal["tofu"] = "tofu"
    sources: tuple[Source, ...]
    """Rows with `prompt` and `response`, and their wrong answers."""
    prompt: str = "{prompt}"
    """The prompt; `{prompt}` and any other column."""
    delimiter: str = " "
    """What stands between the prompt and an answer where the model has no chat template."""
    perturbed: str = "perturbed_answer"
    """The column of wrong answers: a list, or one as JSON."""
    paraphrased: str | None = None
    """The column of the right answer in other words, `paraphrased_answer` in TOFU's own files; null: the response."""
    borrowed: int | None = Field(default=None, ge=1)
    """For data without wrong answers: take so many responses of other rows, always the same ones."""
    sets: str | None = None
    """The column that says which set a row is of (`set:` on a source adds one): TOFU's utility is of three sets."""
    normalised: tuple[str, ...] = ()
    """The sets whose probability is taken among the given answers: TOFU's real authors and world facts."""
    reference: LanguageModel | None = None
    """A model trained like the base but without the forget set (`spunge finetune` on the retain set), for
    `forget_quality`."""
    batch_size: int | None = Field(default=None, ge=1)
    """How many answers go through the model at once; by default 16, and in writing as many as suit its memory."""

    def check(self) -> None:
        """Refuses rows that cannot be asked."""
        self._items()

    def forecast(self, base: LanguageModel) -> Forecast:
        """Says what scoring every answer takes, right or wrong, and writing one as long as the longest response."""
        loaded, answers = self._items()
        written = max(token_counts(base, [str(item.row["response"]) for item in loaded]))
        texts = [
            f"{self._fill_prompt(item.row)} {item.row['response']} {right} {' '.join(wrong)}"
            for item, (right, wrong) in zip(loaded, answers, strict=True)
        ]
        return forecast_asking(base, texts, batch_size=self.batch_size, scored=written, written=written)

    def evaluate(self, variant: LoadedVariant, work: Work) -> ItemTable:
        """Returns the metrics of every row, the greedy answer, and the figures of the whole set.

        Raises:
            DataError: A column is missing, or an answer is empty.
        """
        loaded, answers = self._items()
        measured_logs = self._probabilities(loaded, answers, variant.model, variant.tokenizer, work)
        written = self._written(loaded, variant, work)
        measured, by_set = [], {}
        for item, logs, answer in zip(loaded, measured_logs, written, strict=True):
            kind = "" if self.sets is None else str(item.row[self.sets])
            values = measure(logs, str(item.row["response"]), answer, among_wrong=kind in self.normalised)
            measured.append(Measurement(item, self.suite, values, {"answer": answer}))
            by_set.setdefault(kind, []).append(values)
        whole: dict[str, float | None] = {"model_utility": None}
        if not any(values[NAN] for rows in by_set.values() for values in rows):
            whole["model_utility"] = model_utility(list(by_set.values()))
            if self.reference is not None:
                known = work.resident.cached(
                    ("tofu", self.model_dump_json(exclude={"batch_size"})),
                    lambda: self._reference(loaded, answers, work),
                )
                whole["forget_quality"] = kolmogorov_smirnov([truth_ratio(*logs[1:]) for logs in measured_logs], known)
        all_items = Item(item_id({"set": [item.id for item in loaded]}), "{}", {})
        return item_table(self.suite, [*measured, Measurement(all_items, "whole set", whole, {})])

    def _reference(self, loaded: Sequence[Item], answers: Sequence[tuple[str, list[str]]], work: Work) -> list[float]:
        assert self.reference is not None
        model, tokenizer = self.reference.load(device=work.device), self.reference.load_tokenizer()
        return [truth_ratio(*each[1:]) for each in self._probabilities(loaded, answers, model, tokenizer, work)]

    def _items(self) -> tuple[list[Item], list[tuple[str, list[str]]]]:
        """The items, and each one's right answer in other words and its wrong ones."""
        loaded = suite_items(self, "prompt", "response", *(name for name in (self.sets, self.paraphrased) if name))
        return loaded, list(zip(self._right(loaded), self._wrong(loaded), strict=True))

    def _right(self, loaded: Sequence[Item]) -> Iterator[str]:
        for item in loaded:
            yield str(item.row["response" if self.paraphrased is None else self.paraphrased])

    def _wrong(self, loaded: Sequence[Item]) -> Iterator[list[str]]:
        if self.borrowed is not None:
            yield from borrow([(item.id, str(item.row["response"])) for item in loaded], self.borrowed)
            return
        for item in loaded:
            wrong = item.row.get(self.perturbed)
            if isinstance(wrong, str) and wrong.startswith("["):
                wrong = json.loads(wrong)
            if not wrong or isinstance(wrong, str):
                raise DataError(
                    f"{self.sources[0].path}: a row has no list of wrong answers in {self.perturbed!r}; columns are "
                    f"{', '.join(item.row)}; or set borrowed=5 to take other rows' responses"
                )
            yield [str(one) for one in wrong]

    def _probabilities(
        self,
        loaded: Sequence[Item],
        answers: Sequence[tuple[str, list[str]]],
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        work: Work,
    ) -> list[tuple[float, float, list[float]]]:
        """Log P(a | q) / |a| of every row's response, of its right answer in other words, and of its wrong ones."""
        from spunge.asking.batching import Batching
        from spunge.asking.likelihoods import loglikelihoods

        pairs = [
            (self._fill_prompt(item.row), answer)
            for item, (right, wrong) in zip(loaded, answers, strict=True)
            for answer in (str(item.row["response"]), right, *wrong)
        ]
        if not all(answer.strip() for _, answer in pairs):
            raise DataError(f"{self.sources[0].path}: a row has an empty answer; remove it")
        systems = [
            item.row.get("system") for item, (_, wrong) in zip(loaded, answers, strict=True) for _ in (0, 1, *wrong)
        ]
        requests = lay_out(model, tokenizer, pairs, self.delimiter, systems)
        scores = loglikelihoods(model, requests, Batching(self.batch_size, work.progress), what=self.suite)
        per_token = iter([score / len(each.continuation) for score, each in zip(scores, requests, strict=True)])
        return [(next(per_token), next(per_token), [next(per_token) for _ in wrong]) for _, wrong in answers]

    def _written(self, loaded: Sequence[Item], variant: LoadedVariant, work: Work) -> list[str]:
        from spunge.asking.batching import Batching
        from spunge.asking.completions import complete_requests

        pairs = [(self._fill_prompt(item.row), str(item.row["response"])) for item in loaded]
        systems = [item.row.get("system") for item in loaded]
        requests = lay_out(variant.model, variant.tokenizer, pairs, self.delimiter, systems)
        batching = Batching(self.batch_size, work.progress, work.scratch)
        return complete_requests(variant.model, variant.tokenizer, requests, batching)

    def _fill_prompt(self, row: Mapping[str, Any]) -> str:
        try:
            return self.prompt.format_map(row)
        except (KeyError, IndexError, ValueError) as error:
            raise DataError(
                f"prompt {self.prompt!r} cannot be filled: {error}; columns are {', '.join(row)}"
            ) from error


def measure(
    logs: tuple[float, float, list[float]], response: str, answer: str, *, among_wrong: bool = False
) -> dict[str, float | None]:
    """Returns the metrics of one question.

    Args:
        logs: log P(a | q) / |a| of the response, of the right answer in other words, and of each wrong answer.
        response: The right answer.
        answer: What the model wrote.
        among_wrong: Whether the probability is the response's share among itself and the wrong answers.
    """
    expected, right, wrong = logs
    if not all(map(math.isfinite, (expected, right, *wrong))):
        # max(0, 1 − NaN) is 0, and exp(NaN) no probability: a broken model would seem to have forgotten.
        return {**dict.fromkeys(("probability", "rouge_l", "truthfulness", "truth_ratio")), NAN: 1.0}
    ratio = truth_ratio(right, wrong)
    return {
        "probability": math.exp(expected) / (sum(map(math.exp, (expected, *wrong))) if among_wrong else 1.0),
        "rouge_l": rouge_l(response, answer),
        "truthfulness": max(0.0, 1.0 - ratio),
        "truth_ratio": ratio,
        NAN: 0.0,
    }


def truth_ratio(right: float, wrong: Sequence[float]) -> float:
    """Returns R: the wrong answers' probability a token, in the geometric mean, over the right one's.

    Args:
        right: log P(a | q) / |a| of the right answer.
        wrong: The same of each wrong answer.
    """
    return math.exp(min(sum(wrong) / len(wrong) - right, 700.0))


def model_utility(sets: Sequence[Sequence[Mapping[str, float | None]]]) -> float:
    """Returns the harmonic mean over sets of their mean probability, ROUGE-L recall and truthfulness; 0 if one is 0."""
    means = [
        sum(values[metric] or 0.0 for values in rows) / len(rows)
        for rows in sets
        for metric in ("probability", "rouge_l", "truthfulness")
    ]
    return len(means) / sum(1 / mean for mean in means) if all(means) else 0.0


def borrow(answers: Sequence[tuple[str, str]], count: int) -> Iterator[list[str]]:
    """Yields `count` other answers for every one: those that follow it in the order of their hashes.

    Args:
        answers: An item's id, a hash, and its answer.
        count: How many to take.

    Raises:
        DataError: There are not so many different answers.
    """
    ordered = sorted(answers)
    position = {name: index for index, (name, _) in enumerate(ordered)}
    for name, right in answers:
        others: dict[str, None] = {}
        for step in range(1, len(ordered)):
            answer = ordered[(position[name] + step) % len(ordered)][1]
            if answer != right:
                others[answer] = None
            if len(others) == count:
                break
        if len(others) < count:
            raise DataError(f"borrowed: there are not {count} other answers to take; ask for fewer")
        yield list(others)

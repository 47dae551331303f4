"""What a figure of an evaluation is called, and which way it is better: declared by evaluators, read by the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

Better = Literal["kept", "gone", "high", "low"]
"""What a high figure means. `kept`: what was asked for is still there (an accuracy), so high is better on a retain
suite and low on a forget suite; `gone`: the reverse (the perplexity of a text); `high` and `low`: that is better
whatever the suite's goal (how fluent a completion is)."""


@dataclass(frozen=True)
class Metric:
    """One figure that an evaluator measures on every item."""

    name: str
    """As in the column `metric` of the items."""
    label: str = ""
    """In a sentence: `toxic completions`. Default: the name."""
    short: str = ""
    """In a column's head: `toxicity`. Default: the name."""
    share: bool = False
    """Whether it lies between 0 and 1 and is shown as a percentage; only these are drawn side by side."""
    better: Better = "kept"
    shown: bool = True
    """Whether tables and the verdict have it; the first that is shown is what a suite is judged by."""
    guessed: bool = False
    """Whether a guess among the choices earns something, so that the chance level belongs beside it."""
    answers: tuple[str, str] = ("0", "1")
    """What 0 and 1 are called on a single item: `("wrong", "right")`."""

    @property
    def in_words(self) -> str:
        """What it measures, for a sentence."""
        return self.label or self.name

    @property
    def head(self) -> str:
        """What it measures, for a column."""
        return self.short or self.name

    def higher_is_better(self, goal: str) -> bool:
        """Says which way is better on a suite with this goal."""
        return self.better == "high" or self.better == {"retain": "kept", "forget": "gone"}[goal]


def read_metric(content: Mapping[str, Any]) -> Metric:
    """Reads a metric from a manifest; what a newer Spunge notes beyond this one's fields is left alone."""
    known = {field.name: content[field.name] for field in fields(Metric) if field.name in content}
    return Metric(**{**known, "answers": tuple(known.get("answers", ("0", "1")))})


# Those that several evaluators measure; one that a single evaluator measures stands beside it.
ACCURACY = Metric("acc", "accuracy", "acc.", share=True, guessed=True, answers=("wrong", "right"))
ACCURACY_BY_LENGTH = Metric(
    "acc_norm", "accuracy (length-normalised)", "acc. norm.", share=True, guessed=True, answers=("wrong", "right")
)
P_CORRECT = Metric("p_correct", "probability of the right answer", "p(right)", share=True, guessed=True)
TEXT_PERPLEXITY = Metric("perplexity", "perplexity", "PPL", better="gone")
ROUGE_L = Metric("rouge_l", "ROUGE-L recall of the greedy answer", "ROUGE-L", share=True)

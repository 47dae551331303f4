"""Evaluators: what must go and what must stay, asked of every variant and noted item by item."""

from typing import Annotated

from pydantic import Field

from spunge.evaluators.attacks import Quantization, Relearning
from spunge.evaluators.harness import Harness
from spunge.evaluators.memorization import Memorization
from spunge.evaluators.multiple_choice import MultipleChoice
from spunge.evaluators.perplexity import Perplexity
from spunge.evaluators.tofu import Tofu
from spunge.evaluators.toxicity import Toxicity
from spunge.interfaces import Evaluator

AnyEvaluator = Annotated[
    MultipleChoice | Toxicity | Perplexity | Memorization | Tofu | Harness | Quantization | Relearning,
    Field(discriminator="method"),
]
"""Every evaluator that a recipe can name by its `method`."""

EVALUATORS: dict[str, type[Evaluator]] = {
    "multiple_choice": MultipleChoice,
    "toxicity": Toxicity,
    "perplexity": Perplexity,
    "memorization": Memorization,
    "tofu": Tofu,
    "harness": Harness,
    "quantization": Quantization,
    "relearning": Relearning,
}
"""The evaluators by the name that recipes use."""

__all__ = [
    "EVALUATORS",
    "AnyEvaluator",
    "Harness",
    "Memorization",
    "MultipleChoice",
    "Perplexity",
    "Quantization",
    "Relearning",
    "Tofu",
    "Toxicity",
]

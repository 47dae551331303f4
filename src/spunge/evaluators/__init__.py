"""Evaluators: what must go and what must stay, asked of every variant and noted item by item."""

from typing import Annotated, get_args

from pydantic import Field

from spunge.evaluators.attacks import AnyAttack
from spunge.evaluators.harness import Harness
from spunge.evaluators.memorization import Memorization
from spunge.evaluators.multiple_choice import MultipleChoice
from spunge.evaluators.perplexity import Perplexity
from spunge.evaluators.tofu import Tofu
from spunge.evaluators.toxicity import Toxicity
from spunge.interfaces import Evaluator

AnyEvaluator = Annotated[
    MultipleChoice | Toxicity | Perplexity | Memorization | Tofu | Harness | AnyAttack,
    Field(discriminator="method"),
]
"""Every evaluator that a recipe can name by its `method`."""

BY_METHOD: dict[str, type[Evaluator]] = {
    kind.model_fields["method"].default: kind for kind in get_args(get_args(AnyEvaluator)[0])
}

__all__ = [
    "BY_METHOD",
    "AnyEvaluator",
    "Harness",
    "Memorization",
    "MultipleChoice",
    "Perplexity",
    "Tofu",
    "Toxicity",
]

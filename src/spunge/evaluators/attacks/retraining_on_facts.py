"""Do the facts come back that the attacker does not know? Trains on the answers to half the questions, asks the others.

Retraining on T (RTT; Deeb and Roger, 2024, arXiv:2410.08827): whoever knows some facts of a kind trains on them, and
the others, which share nothing with them, come back as well where they were hidden and not removed. 88 % of the
accuracy came back there. A model that never knew them learns nothing of the other half.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Literal

from pydantic import Field

from spunge.evaluators.attacks.attack import Ask, Attack, Material, halves, multiple_choice
from spunge.evaluators.attacks.tuning import Tuned
from spunge.interfaces import Evaluator, LoadedVariant, Work


class RetrainingOnFacts(Tuned):
    """Fine-tunes a variant on the answers to half of a suite's questions, and asks the other half."""

    method: Literal["retraining_on_facts"] = "retraining_on_facts"
    steps: tuple[int, ...] = Field(default=(0, 20, 60), min_length=1)
    """After how many steps the other half is asked; 0 is before the attack."""

    @classmethod
    def against(cls, of: Evaluator, material: Material, settings: Mapping[str, Any]) -> Iterator[Attack]:
        """Yields it with the suite of what must stay beside it."""
        return super().against(of, material, {"keep": material.kept, **settings})

    @property
    def settings(self) -> tuple[str, ...]:
        """The numbers of steps."""
        return tuple(self.setting(stop, rate) for rate in self.rates for stop in self.steps)

    def check(self) -> None:
        """Refuses a suite of another kind or with a single question, and what its suites refuse."""
        multiple_choice(self)
        super().check()
        halves(self)

    def attempts(self, variant: LoadedVariant, work: Work) -> Iterator[tuple[str, Ask]]:
        """Yields each number of steps.

        Raises:
            TrainingDiverged: The loss became NaN or infinite.
        """
        told, asked = halves(self)
        texts = [
            question.before + question.contexts[question.right[0]] + question.delimiter
            + question.targets[question.right[0]] for group in told.values() for question in group
        ]  # fmt: skip
        ask = self.beside_what_is_kept(partial(multiple_choice(self).ask, asked), variant, work)
        for rate in self.rates:
            for stop in self.tuned(variant, texts, rate, work):
                yield self.setting(stop, rate), ask

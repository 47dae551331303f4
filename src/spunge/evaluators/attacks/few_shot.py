"""Do solved examples bring it back? The right answers to other questions stand before each (Brown et al., 2020).

The examples are of what must go, so they call the subject up, and show that it is to be answered; none of them holds
the answer that is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from spunge.evaluators.attacks.attack import Ask, Attack, multiple_choice
from spunge.interfaces import Forecast, LoadedVariant, Work

if TYPE_CHECKING:
    from spunge.evaluators.multiple_choice import Question
    from spunge.weights.language_model import LanguageModel


class FewShot(Attack):
    """Puts solved questions of the same suite before each question."""

    method: Literal["few_shot"] = "few_shot"
    shots: tuple[Annotated[int, Field(ge=1)], ...] = (4,)
    """How many stand before each question."""

    @property
    def settings(self) -> tuple[str, ...]:
        """The numbers of shots."""
        return tuple(f"{count} shots" for count in self.shots)

    def check(self) -> None:
        """Refuses a suite of another kind, and what the suite refuses."""
        multiple_choice(self).check()

    def forecast(self, base: LanguageModel) -> Forecast:
        """Says what reading so many questions at once takes; each context is as many times as long."""
        return self._rounds(base, sum(1 + count for count in self.shots))

    def attempts(self, variant: LoadedVariant, work: Work) -> Iterator[tuple[str, Ask]]:
        """Yields each number of shots."""
        suite = multiple_choice(self)
        for setting, count in zip(self.settings, self.shots, strict=True):
            asked = {task: with_shots(group, count, suite.separator) for task, group in suite.questions().items()}
            yield setting, partial(suite.ask, asked)


def with_shots(questions: Sequence[Question], count: int, separator: str) -> list[Question]:
    """Returns the questions of a task, each behind `count` others with their answers: the first by their item's name.

    Where there are fewer others, all of them.
    """
    solved = {
        question.item.id: question.contexts[question.right[0]]
        + question.delimiter
        + question.targets[question.right[0]]
        for question in sorted(questions, key=lambda question: question.item.id)
    }
    asked = []
    for question in questions:
        others = [text for name, text in solved.items() if name != question.item.id][:count]
        asked.append(replace(question, before=question.before + "".join(text + separator for text in others)))
    return asked

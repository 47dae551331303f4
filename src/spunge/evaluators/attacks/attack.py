"""The contract of attacks: change a model or a question as an attacker would, and a suite is asked again.

An attack is one small file: its settings, the names of its `settings`, and `attempts`, which brings the model into each
of them in turn. The base class asks, names the answers, and sees to it that the model is itself again afterwards.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import polars as pl
from pydantic import Field, SerializeAsAny, WrapValidator

from spunge.errors import DataError
from spunge.evaluators.memorization import Memorization
from spunge.evaluators.multiple_choice import MultipleChoice, Question
from spunge.evaluators.perplexity import Perplexity
from spunge.evaluators.toxicity import Toxicity
from spunge.interfaces import Evaluator, Forecast, LoadedVariant, Work
from spunge.metrics import Metric
from spunge.rows.items import ItemTable
from spunge.rows.sources import Source, item_id

if TYPE_CHECKING:
    from torch import Tensor, nn

    from spunge.weights.language_model import LanguageModel


def _as_it_is(value: Any, validate: Callable[[Any], Evaluator]) -> Evaluator:
    return value if isinstance(value, Evaluator) else validate(value)


Asked = Annotated[
    SerializeAsAny[Annotated[MultipleChoice | Toxicity | Perplexity | Memorization, Field(discriminator="method")]],
    WrapValidator(_as_it_is),
]
"""A suite that an attacked variant is asked; built in Python, any evaluator."""

Ask = Callable[[LoadedVariant, Work], ItemTable]
"""What is asked of an attacked model: a suite's `evaluate`, or another of its kind that returns items of that suite."""


@dataclass(frozen=True)
class Material:
    """What the attacker of an experiment may have in hand, beside the model."""

    forget: tuple[Source, ...] = ()
    """Rows of what was to go."""
    retain: tuple[Source, ...] = ()
    """Rows of what was to stay: benign text."""
    unseen: tuple[Source, ...] = ()
    """Rows like those of what was to go, that the base model was never trained on."""
    attribute: str | None = None
    """The column of the forget rows by which they were split."""
    kept: Evaluator | None = None
    """A suite of what must stay: an attack that ruins the model has brought nothing back."""


class Attack(Evaluator):
    """Changes a variant as an attacker would, and asks a suite again."""

    cheap: ClassVar[Mapping[str, Any] | None] = None
    """The settings with which `robustness: cheap` asks it, few enough for a sample of items to say something; None
    where it does not, as it trains, or another stands for its kind."""
    of_change: ClassVar[bool] = False
    """Whether it works on what a variant adds to the base model: on the base itself it then changes nothing. Whoever
    has that needs no attack, so it tells how shallow an edit is, and counts for no worst case."""

    opt_in: ClassVar[bool] = False
    """Whether only who names it gets it, as it costs more than all others: `full` leaves it out."""

    of: Asked
    """The suite to ask. Name it like one of the recipe's own with the same items: what that one finds is what this
    attack is measured against. Its goal gives way to the attack's."""

    @classmethod
    def named(cls) -> str:
        """Returns the method's name; of one that gives itself none, the class's."""
        return getattr(cls.model_fields.get("method"), "default", None) or cls.__name__

    @classmethod
    def against(cls, of: Evaluator, material: Material, settings: Mapping[str, Any]) -> Iterator[Attack]:
        """Yields this attack on a suite, as `robustness` in a recipe has it; most yield one.

        Args:
            of: The suite.
            material: What the attacker has in hand.
            settings: Settings that are not left at their defaults.

        Raises:
            SpungeError: It cannot be asked of this suite, or needs what there is not.
        """
        yield cls.model_validate({"suite": f"{of.suite}: {cls.named()}", "goal": of.goal, "of": of, **settings})

    @property
    @abstractmethod
    def settings(self) -> Sequence[str]:
        """The names of all that it tries: `int4`, `10 steps`."""

    @abstractmethod
    def attempts(self, variant: LoadedVariant, work: Work) -> Iterator[tuple[str, Ask]]:
        """Yields each setting's name with what to ask, once `variant` is in that setting; it is asked before the next.

        Weights are put back afterwards by `restored`, which an attack that changes them holds open while it yields.
        """

    def evaluate(self, variant: LoadedVariant, work: Work) -> ItemTable:
        """Returns the suite's items once for each setting, the task named after it.

        Raises:
            SpungeError: The suite, or the attack, cannot be asked of this model.
        """
        if self.of_change and variant.at is None:
            plain = self.of.evaluate(variant, work)
            return pl.concat([_under(plain, self.suite, setting) for setting in self.settings])
        tables = []
        with closing(self.attempts(variant, work)) as attempts:  # type: ignore[type-var]
            for setting, ask in attempts:
                # An attacked model's answers are another model's.
                apart = replace(work, scratch=work.scratch / item_id(setting))
                work.progress(f"{self.suite}: {setting}", len(tables), len(self.settings))
                tables.append(_under(ask(variant, apart), self.suite, setting))
        return pl.concat(tables)

    def check(self) -> None:
        """Refuses what its suite refuses."""
        self.of.check()

    def forecast(self, base: LanguageModel) -> Forecast:
        """Says what asking once for each setting takes."""
        return self._rounds(base, len(self.settings))

    def _rounds(self, base: LanguageModel, rounds: float) -> Forecast:
        """What asking the suite so many times takes."""
        forecast = self.of.forecast(base)
        operations = None if forecast.operations is None else forecast.operations * rounds
        disk = None if forecast.disk is None else round(forecast.disk * len(self.settings))
        return replace(forecast, operations=operations, disk=disk, calls=round(forecast.calls * rounds))

    @property
    def measures(self) -> tuple[Metric, ...]:
        """What its suite measures."""
        return self.of.measures

    @property
    def described(self) -> dict[str, Any]:
        """As for any suite, which one it asks again, and whether by the base model's weights."""
        return {
            **super().described,
            "offensive": self.of.offensive,
            "attacks": self.of.suite,
            "needs_base": self.of_change,
        }


def multiple_choice(attack: Attack) -> MultipleChoice:
    """Returns the suite of an attack that works on questions with choices.

    Raises:
        DataError: It is of another kind.
    """
    if not isinstance(attack.of, MultipleChoice):
        kind = getattr(attack.of, "method", type(attack.of).__name__)
        raise DataError(f"{attack.suite}: this attack is on multiple_choice, and {attack.of.suite!r} is {kind}")
    return attack.of


def halves(attack: Attack) -> tuple[dict[str, list[Question]], dict[str, list[Question]]]:
    """Returns the questions whose answers the attacker knows, and those that are asked, by their names' last digit.

    Raises:
        DataError: The suite is of another kind, or one half is empty.
    """
    parts: tuple[dict[str, list[Question]], dict[str, list[Question]]] = ({}, {})
    for task, group in multiple_choice(attack).questions().items():
        for question in group:
            parts[int(question.item.id[-1], 16) % 2].setdefault(task, []).append(question)
    if not all(parts):
        raise DataError(f"{attack.suite}: too few questions to train on half of them and ask the others")
    return parts


@contextmanager
def restored(module: nn.Module) -> Iterator[None]:
    """Puts every parameter back to the bytes it had, and every `requires_grad`, whatever happens in between."""
    import torch

    before = {name: (p.detach().to("cpu", copy=True), p.requires_grad) for name, p in module.named_parameters()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                value, wanted = before[name]
                parameter.copy_(value)
                parameter.requires_grad_(wanted)
                parameter.grad = None


def weights_changed(
    variant: LoadedVariant, settings: Iterable[str], change: Callable[[str, str, Tensor], Tensor]
) -> Iterator[str]:
    """Yields each setting while every linear layer's weight, but the output embedding's, is what `change` makes of it.

    Args:
        variant: Whose weights.
        settings: Their names.
        change: Gives the setting, the layer's name and its weight [out features, in features]; returns another.
    """
    from torch import nn, no_grad

    for setting in settings:
        with restored(variant.model):
            with no_grad():
                for name, module in variant.model.named_modules():
                    if isinstance(module, nn.Linear) and module is not variant.model.get_output_embeddings():
                        module.weight.copy_(change(setting, name, module.weight))
            yield setting


def _under(table: ItemTable, suite: str, setting: str) -> ItemTable:
    """Returns what a suite found as what `suite` found in a setting; the items keep their names."""
    return table.with_columns(pl.lit(suite).alias("suite"), (pl.col("task") + f" @ {setting}").alias("task"))

"""What the attacks share: the suites they can be measured by, and a model that is itself again afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import polars as pl
from pydantic import Field

from spunge.evaluators.memorization import Memorization
from spunge.evaluators.multiple_choice import MultipleChoice
from spunge.evaluators.perplexity import Perplexity
from spunge.evaluators.toxicity import Toxicity
from spunge.interfaces import Evaluator, Forecast
from spunge.metrics import Metric

if TYPE_CHECKING:
    from torch import nn

    from spunge.interfaces import Work
    from spunge.rows.items import ItemTable
    from spunge.weights.language_model import LanguageModel

Asked = Annotated[MultipleChoice | Toxicity | Perplexity | Memorization, Field(discriminator="method")]
"""A suite that an attacked variant is asked."""


class Attack(Evaluator):
    """Changes a variant as an attacker would, and asks a suite again."""

    of: Asked
    """The suite to ask. Name it like one of the recipe's own with the same items: what that one finds is what this
    attack is measured against. Its goal gives way to the attack's."""

    def check(self) -> None:
        """Refuses what its suite refuses."""
        self.of.check()

    def _rounds(self, base: LanguageModel, rounds: int) -> Forecast:
        """What asking the suite so many times takes."""
        forecast = self.of.forecast(base)
        operations = None if forecast.operations is None else forecast.operations * rounds
        disk = None if forecast.disk is None else forecast.disk * rounds
        return replace(forecast, operations=operations, disk=disk, calls=forecast.calls * rounds)

    @property
    def measures(self) -> tuple[Metric, ...]:
        """What its suite measures."""
        return self.of.measures

    @property
    def described(self) -> dict[str, Any]:
        """As for any suite, and which one it asks again."""
        return {**super().described, "offensive": self.of.offensive, "attacks": self.of.suite}


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


def apart(work: Work, attack: str) -> Work:
    """Returns the work with a scratch directory of its own: an attacked model's answers are another model's."""
    return replace(work, scratch=work.scratch / attack)


def under(table: ItemTable, suite: str, attack: str) -> ItemTable:
    """Returns what a suite found as what `suite` found under `attack`; the items keep their names."""
    return table.with_columns(pl.lit(suite).alias("suite"), (pl.col("task") + f" @ {attack}").alias("task"))

"""The stages that ask one variant one suite: at once, or in steps that write, read what was written, and gather."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from spunge.errors import PredictsNothing
from spunge.interfaces import Evaluator, Forecast, Generation, LoadedVariant, Scorer, Work
from spunge.rows.items import ItemTable, check_items, mean_values
from spunge.run.identity import identity
from spunge.run.keys import key
from spunge.run.store import Artifact
from spunge.run.variant import Base, Variant, VariantTask
from spunge.settings import Settings

_ANSWERS = "answers.parquet"


@dataclass(frozen=True, eq=False)
class Generate(VariantTask):
    """The task that has one variant write what an evaluation's scorers read."""

    variant: Variant
    generation: Generation
    base: Base
    suite: str
    stage = "generate"

    @property
    def name(self) -> str:
        """The variant and the suite."""
        return f"{self.variant.name} on {self.suite}"

    @property
    def inputs(self) -> Mapping[str, Any]:
        """The weights and the prompts; nothing of who reads the completions."""
        return {**self.weights, "generation": identity(self.generation), **_focus(self.generation)}

    def forecast(self, work: Work, earlier: Mapping[str, Forecast]) -> Forecast:
        """Says what writing takes, whatever the variant."""
        question = ("forecast", self.generation.model_dump_json(), self.base.model)
        return work.resident.cached(question, lambda: self.generation.forecast(self.base.model))

    def make(self, work: Work) -> Mapping[str, Any]:
        """Saves what the variant writes."""
        with _naming(self.variant):
            written = self.generation.generate(self.base.model, self.variant.change(), work)
        written.write_parquet(work.output / _ANSWERS)
        return {"rows": len(written)}


@dataclass(frozen=True, eq=False)
class Score:
    """The task in which one scorer, a classifier or a judge, reads what one variant wrote."""

    scorer: Scorer
    written: Artifact
    generate: Generate

    @property
    def stage(self) -> str:
        """The scorer's."""
        return self.scorer.stage

    @property
    def name(self) -> str:
        """The variant and the suite."""
        return self.generate.name

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.generate.seed

    @property
    def inputs(self) -> Mapping[str, Any]:
        """What was written, and who reads it."""
        return {"written": self.written.key, "scorer": identity(self.scorer)}

    def forecast(self, work: Work, earlier: Mapping[str, Forecast]) -> Forecast:
        """Says what reading takes, whatever the variant wrote."""
        question = ("forecast", self.scorer.model_dump_json(), self.generate.generation.model_dump_json())
        return work.resident.cached(question, lambda: self.scorer.forecast(self.generate.generation))

    def make(self, work: Work) -> Mapping[str, Any]:
        """Saves what the scorer finds."""
        scores = self.scorer.score(pl.read_parquet(self.written.path / _ANSWERS), work)
        scores.write_parquet(work.output / _ANSWERS)
        return {"rows": len(scores)}


@dataclass(frozen=True, eq=False)
class Evaluate(VariantTask):
    """The task that asks one variant one suite, or gathers what the steps of the suite found."""

    variant: Variant
    evaluator: Evaluator
    base: Base
    steps: tuple[Artifact, ...] = ()
    """What the variant wrote, then what each scorer found; none where the evaluator asks the variant directly."""
    stage = "evaluate"

    @property
    def name(self) -> str:
        """The variant and the suite."""
        return f"{self.variant.name} on {self.evaluator.suite}"

    @property
    def inputs(self) -> Mapping[str, Any]:
        """The weights and the questions; not the variant's name."""
        return {
            **self.weights,
            "evaluator": identity(self.evaluator),
            **_focus(self.evaluator),
            **({"steps": [step.key for step in self.steps]} if self.steps else {}),
        }

    def forecast(self, work: Work, earlier: Mapping[str, Forecast]) -> Forecast:
        """Says what asking takes, whatever the variant; to gather what steps found asks no model."""
        if self.steps:
            return Forecast(memory=0, disk=0, operations=0.0)
        question = ("forecast", self.evaluator.model_dump_json(), self.base.model)
        return work.resident.cached(question, lambda: self.evaluator.forecast(self.base.model))

    def make(self, work: Work) -> Mapping[str, Any]:
        """Asks, and saves the item table."""
        with _naming(self.variant):
            items = self._gather() if self.steps else self._ask(work)
        check_items(items, self.evaluator.suite, f"{type(self.evaluator).__name__} on {self.variant.name}")
        shown = [metric.name for metric in self.evaluator.measures if metric.shown]
        items.write_parquet(work.output / "items.parquet")
        return {"items": items["item"].n_unique(), "figures": mean_values(items, shown)}

    def _gather(self) -> ItemTable:
        written, *scores = (pl.read_parquet(step.path / _ANSWERS) for step in self.steps)
        return self.evaluator.gather(written, scores)

    def _ask(self, work: Work) -> ItemTable:
        """Swaps the task vector into the resident base, and asks."""
        change = self.variant.change()
        model, tokenizer = work.resident.base(self.base.model)
        loaded = LoadedVariant(self.variant.name, model, tokenizer, key("weights", self.weights))
        if change is None:
            return self.evaluator.evaluate(loaded, work)
        with work.resident.scaled(self.base.model, change) as at:
            at(1.0)
            return self.evaluator.evaluate(replace(loaded, at=at), work)


def _focus(asked: Settings) -> dict[str, Any]:
    """Which of the items are asked, in the key only where it is not all of them."""
    focus = getattr(getattr(asked, "of", asked), "focus", None)  # an attack's is that of the suite it asks
    return {} if focus is None else {"focus": identity(focus)}


@contextmanager
def _naming(variant: Variant) -> Iterator[None]:
    """Says of a model that cannot write which variant it is."""
    try:
        yield
    except PredictsNothing as error:
        raise PredictsNothing(
            f"{variant.name} (seed {variant.seed}): {error}; train it more gently, or merge with a smaller λ"
        ) from error

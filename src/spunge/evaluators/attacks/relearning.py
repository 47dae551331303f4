"""How little does it take to learn again what was unlearned? Trains on some rows, and asks about others.

Read it beside the base model's own curve and beside one on unrelated rows: ten unrelated examples can be enough to
undo RMU (Łucki et al., 2024, arXiv:2409.18025), and then it was hidden, not gone. With `by`, each value's rows are
trained on apart: does one subject come back while another is learnt again?
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field

from spunge.errors import DataError
from spunge.evaluators.attacks.attack import Ask, Attack, Material
from spunge.evaluators.attacks.tuning import Tuned
from spunge.interfaces import Evaluator, LoadedVariant, Work
from spunge.rows.sources import Corpus, Source, item_id, load_corpus

_MOST_VALUES = 4


class Relearning(Tuned):
    """Fine-tunes a variant on a few rows, asks a suite along the way, and puts the variant back."""

    method: Literal["relearning"] = "relearning"
    train_on: tuple[Source, ...]
    """Rows with a `text`, or `prompt` and `response`, other than those that `of` asks about: part of the forget set,
    another subset, or unrelated text."""
    where: str | None = None
    """A polars SQL expression that keeps a training row."""
    by: str | None = None
    """A column of these rows: it is trained anew on the rows of each of its values, at most four."""
    rows: int = Field(default=16, ge=1)
    """How many rows to train on, the first by their hash."""

    @classmethod
    def against(cls, of: Evaluator, material: Material, settings: Mapping[str, Any]) -> Iterator[Attack]:
        """Yields two: on rows of what was to go, by the attribute of the split where there is one; on benign text."""
        plain = {"goal": of.goal, "of": of, "keep": material.kept, **settings}
        if not (material.forget or material.retain):
            raise DataError("relearning needs rows to train on: a forget or a retain set")
        for title, sources, by in (
            ("relearning", material.forget, material.attribute),
            ("benign text", material.retain, None),
        ):
            if sources:
                one = cls.model_validate({**plain, "suite": f"{of.suite}: {title}", "train_on": sources, "by": by})
                yield one.model_copy(update={"rows": min(one.rows, *map(len, one._groups().values()))})

    @property
    def settings(self) -> tuple[str, ...]:
        """The numbers of steps, of each value's rows where there are several."""
        return tuple(
            self.setting(stop, rate, value) for value in self._texts() for rate in self.rates for stop in self.steps
        )

    @property
    def runs(self) -> int:
        """For every value, if there are several, one for every rate."""
        return len(self._texts()) * len(self.rates)

    def check(self) -> None:
        """Refuses what its suites refuse, and too few rows."""
        super().check()
        self._texts()

    def attempts(self, variant: LoadedVariant, work: Work) -> Iterator[tuple[str, Ask]]:
        """Yields each number of steps, value by value.

        Raises:
            DataError: There are fewer training rows than asked for.
            TrainingDiverged: The loss became NaN or infinite.
        """
        ask = self.beside_what_is_kept(self.of.evaluate, variant, work)
        for value, texts in self._texts().items():
            for rate in self.rates:
                for stop in self.tuned(variant, texts, rate, work):
                    yield self.setting(stop, rate, value), ask

    def _texts(self) -> dict[str, list[str]]:
        """What is trained on, value → texts; the value is empty where all rows are taken as one."""
        chosen = {}
        for value, corpus in self._groups().items():
            if len(corpus) < self.rows:
                named = f" of {value!r}" if value else ""
                raise DataError(f"{self.suite}: {len(corpus)} training rows{named}, rows: {self.rows}")
            chosen[value] = sorted(corpus.texts, key=item_id)[: self.rows]
        return chosen

    def _groups(self) -> dict[str, Corpus]:
        """The rows of each value; those of the empty one are all."""
        corpus = load_corpus(self.train_on)
        corpus = corpus if self.where is None else corpus.where(self.where)
        if self.by is None:
            return {"": corpus}
        if self.by not in corpus.rows.columns:
            raise DataError(f"{self.suite}: by: no column {self.by!r} in the training rows")
        column = corpus.rows[self.by].to_list()
        held = [[str(part) for part in cell] if isinstance(cell, list) else [str(cell)] for cell in column]
        values = sorted({value for cell in held for value in cell})[:_MOST_VALUES]
        return {value: corpus.select([row for row, cell in enumerate(held) if value in cell]) for value in values}

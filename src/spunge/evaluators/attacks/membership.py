"""Can one still tell what the base model was trained on? Each row's familiarity, beside rows that it never read.

The scores of membership inference: a text's likelihood (Yeom et al., 2018, arXiv:1709.01604), the same by its
compressed length (Carlini et al., 2021, arXiv:2012.07805), Min-K % (Shi et al., 2024, arXiv:2310.16789), Min-K %++
(Zhang et al., 2024, arXiv:2404.02936), and the likelihood over that of a reference model (Carlini et al., 2021). The
report makes areas under ROC curves of them. Rows of another kind than the forget set's are told apart by any model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from pydantic import Field

from spunge.errors import DataError
from spunge.evaluators.attacks.attack import Ask, Attack, Material
from spunge.evaluators.memorization import Memorization
from spunge.interfaces import Evaluator, Forecast, LoadedVariant, Work
from spunge.metrics import Metric
from spunge.rows.items import FAMILIARITY, MEMBER, NAN, Item, ItemTable, Measurement, item_table, suite_items
from spunge.rows.sources import Source
from spunge.weights.language_model import LanguageModel

Score = Literal["loss", "zlib", "min_k", "min_k_plus_plus", "reference"]
_MEASURED = {"zlib": "zlib_ratio", "min_k": "min_k", "min_k_plus_plus": "min_k_plus_plus"}
"""Score → what `Memorization` calls it."""


class Membership(Attack):
    """Scores how familiar rows of the forget set are to a model, beside rows that the base model was not trained on."""

    method: Literal["membership"] = "membership"
    members: tuple[Source, ...]
    """Rows that the base model was trained on: with a `text`, or `prompt` and `response`."""
    outsiders: tuple[Source, ...]
    """Rows of the same kind that it was not trained on."""
    attributes: tuple[str, ...] = ()
    """Columns of the members by whose values it is told apart; outsiders stand beside each value's."""
    limit: int | None = Field(default=500, ge=2)
    """Asks only so many of either, the first by their hash."""
    lowest: float = Field(default=0.2, gt=0, le=1)
    """The share of a text's least likely tokens that Min-K % is the mean of."""
    reference: LanguageModel | None = None
    """A model that was trained on neither: adds the score `reference`."""
    batch_size: int = Field(default=16, ge=1)
    """How many rows go through the model at once."""

    @classmethod
    def against(cls, of: Evaluator, material: Material, settings: Mapping[str, Any]) -> Iterator[Attack]:
        """Yields it where there are rows that the base model was never trained on."""
        if not material.unseen:
            raise DataError("membership needs rows that the base model was not trained on: --unseen of an audit, or it "
                            "stands under `evaluate` with its `outsiders`")  # fmt: skip
        by = () if material.attribute is None else (material.attribute,)
        rows = {"members": material.forget, "outsiders": material.unseen, "attributes": by}
        yield from super().against(of, material, {**rows, **settings})

    @property
    def settings(self) -> tuple[Score, ...]:
        """The scores."""
        scores: tuple[Score, ...] = ("loss", "zlib", "min_k", "min_k_plus_plus")
        return (*scores, "reference") if self.reference else scores

    @property
    def measures(self) -> tuple[Metric, ...]:
        """How familiar a row is, of which areas are made and no mean."""
        return (Metric(FAMILIARITY, "familiarity of a row", "familiar"),)

    def check(self) -> None:
        """Refuses rows that cannot be asked, too few of them, and a row that is both member and outsider."""
        texts = []
        for kind in self._kinds().values():
            kind.check()
            rows = [item.row for item in suite_items(kind)]
            if len(rows) < 2:
                raise DataError(f"{self.suite}: {kind.sources[0].path}: one row is too few")
            texts.append({(row.get("prompt"), row.get("response") or row.get("text")) for row in rows})
        if both := texts[0] & texts[1]:
            raise DataError(f"{self.suite}: {len(both)} rows are among members and outsiders: remove them from one")

    def forecast(self, base: LanguageModel) -> Forecast:
        """Says what reading every row takes, by the reference model too."""
        kinds = self._kinds().values()
        read = [kind.forecast(model) for kind in kinds for model in (base, self.reference) if model is not None]
        return Forecast(
            memory=max(each.memory or 0 for each in read),
            operations=sum(each.operations or 0.0 for each in read),
            calls=sum(each.calls for each in read),
        )

    def attempts(self, variant: LoadedVariant, work: Work) -> Iterator[tuple[str, Ask]]:
        """Yields each score; the rows are read once."""
        rows = other = self._read(variant, work)
        if self.reference is not None:
            reference = LoadedVariant("reference", *work.resident.other(self.reference), self.reference.id)
            apart = replace(work, scratch=work.scratch / "reference")
            other = work.resident.cached(("membership", self.model_dump_json()), lambda: self._read(reference, apart))
        for score in self.settings:
            yield score, partial(self._scored, score, rows, other)

    def _kinds(self) -> dict[bool, Memorization]:
        """What reads the members, and what reads the outsiders."""
        return {
            member: Memorization(
                suite=self.suite, goal=self.goal, sources=sources, attributes=self.attributes if member else (),
                limit=self.limit, lowest=self.lowest, generate=False, batch_size=self.batch_size,
            )
            for member, sources in ((True, self.members), (False, self.outsiders))
        }  # fmt: skip

    def _read(self, variant: LoadedVariant, work: Work) -> list[_Read]:
        """What a model thinks of every row."""
        rows = []
        for member, kind in self._kinds().items():
            apart = replace(work, scratch=work.scratch / ("members" if member else "outsiders"))
            found = (
                kind.evaluate(variant, apart)
                .pivot("metric", index="item", values="value")
                .rows_by_key("item", named=True, unique=True)
            )
            rows += [_Read(item, member, found[item.id]) for item in suite_items(kind)]
        return rows

    def _scored(
        self, score: Score, rows: Sequence[_Read], reference: Sequence[_Read], variant: LoadedVariant, work: Work
    ) -> ItemTable:
        """Every row's familiarity by one score."""
        told = []
        for row, other in zip(rows, reference, strict=True):
            nan = bool(row.values[NAN] or other.values[NAN])
            value = None if nan else familiarity(score, row.values, other.values)
            told.append(
                Measurement(
                    row.item, self.of.suite, {FAMILIARITY: value, MEMBER: float(row.member), NAN: float(nan)}, {}
                )
            )
        return item_table(self.of.suite, told)


@dataclass(frozen=True)
class _Read:
    """A row, and what one model thinks of it."""

    item: Item
    member: bool
    values: Mapping[str, float | None]
    """As `Memorization` measures them."""


def familiarity(score: Score, row: Mapping[str, Any], reference: Mapping[str, Any]) -> float:
    """Returns how familiar a row is by a score: the higher the more.

    Args:
        score: Which.
        row: What `Memorization` measured of it.
        reference: The same of a reference model; counted in the tokens of the first, as its own may be others.
    """
    if score == "loss":
        return -row["nll"] / row["tokens"]
    if score == "reference":
        return (reference["nll"] - row["nll"]) / row["tokens"]
    return row[_MEASURED[score]]

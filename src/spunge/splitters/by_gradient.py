"""Splits by the gradients of the rows at the base model: those that pull alike together, or apart."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from spunge.asking.forecast import forecast_asking
from spunge.interfaces import Forecast, Splitter, Work
from spunge.rows.sources import Corpus
from spunge.splitters import clustering
from spunge.weights.shape import cut_texts

if TYPE_CHECKING:
    from spunge.weights.language_model import LanguageModel


class ByGradient(Splitter):
    """Subsets `gradient_1`, `gradient_2` … by k-means over the directions of the rows' gradients.

    After MERIT (arXiv 2606.01717), which groups data sets of instruction tuning by the cosines of their gradients and
    merges what each group taught; here it is rows, and what must go.
    """

    seeded: ClassVar[bool] = True
    comparable: ClassVar[bool] = False
    outside_key: ClassVar[frozenset[str]] = frozenset({"batch_size"})

    by: Literal["gradient"] = "gradient"
    gather: Literal["alike", "unlike"] = "alike"
    """`alike`: a subset's gradients agree. `unlike`: each group of gradients that agree is dealt out over all subsets,
    so that every subset has some of each: the opposite control."""
    k: int | None = Field(default=None, ge=2)
    """How many subsets; null: as many as give the largest silhouette."""
    most: int = Field(default=8, ge=2)
    """The most that are tried where `k` is null."""
    side: int = Field(default=32, ge=1)
    """A row's gradient, over all linear layers but the head, is drawn down to a matrix of so many rows and columns."""
    max_length: int = Field(default=256, ge=2)
    """How many tokens of a row are read."""
    batch_size: int = Field(default=8, ge=1)
    """How many rows go through the model at once."""

    @property
    def asks_base(self) -> bool:
        return True

    def forecast(self, forget: Corpus, base: LanguageModel) -> Forecast:
        """Says what a pass forwards and one backwards over every row take."""
        reading = forecast_asking(base, cut_texts(base, forget.texts, self.max_length), batch_size=self.batch_size)
        return replace(
            reading, disk=0, operations=None if reading.operations is None else 2 * reading.operations,
            calls=2 * reading.calls,
        )  # fmt: skip

    def split(self, forget: Corpus, base: LanguageModel, work: Work) -> list[tuple[str, ...]]:
        """Returns each row's subset name.

        Raises:
            DataError: There are fewer distinct rows than subsets, or a row has nothing to predict.
        """
        from spunge.training.gradients import draw_projections, sketches
        from spunge.training.rows import encode

        model, tokenizer = work.resident.base(base)
        # One by one: `encode` puts rows of other kinds in another order, and leaves out those that have nothing to say.
        rows = [encode(forget.select([row]), tokenizer, max_length=self.max_length)[0] for row in range(len(forget))]
        drawn = draw_projections(model, self.side, work.seed)
        # Id 0 stands under a mask of 0.
        points = sketches(model, rows, drawn, batch_size=self.batch_size, pad=0, progress=work.progress).numpy()
        points = clustering.directions(points.astype(np.float64))
        groups = clustering.find_clusters(points, self.k, self.most, work.seed)
        return [(f"gradient_{group + 1}",) for group in (groups if self.gather == "alike" else dealt_out(groups))]


def dealt_out(groups: np.ndarray) -> np.ndarray:
    """Returns as many groups of nearly one size, over which the rows of each group are dealt in turn."""
    dealt = np.empty(len(groups), dtype=int)
    dealt[np.argsort(groups, kind="stable")] = np.arange(len(groups)) % (groups.max() + 1)
    return dealt

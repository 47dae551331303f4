"""The stage that merges the unlearned models into one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from spunge.interfaces import Forecast, Merger, Work
from spunge.rows.sources import Corpus
from spunge.run.identity import identity
from spunge.run.store import Artifact
from spunge.run.variant import Base, Variant
from spunge.variants import SUBSET

if TYPE_CHECKING:
    from torch import Tensor

    from spunge.merging import Merged
    from spunge.weights.language_model import LanguageModel


@dataclass(frozen=True, eq=False)
class Merge:
    """The task that merges unlearned models into one."""

    name: str
    merger: Merger
    base: Base
    variants: tuple[Variant, ...]
    seed: int
    fitted_on: Mapping[str, Corpus] = field(default_factory=dict)
    """For mergers that fit: subset (and `retain`) → its rows."""
    stage = "merge"

    @property
    def inputs(self) -> Mapping[str, Any]:
        """The base, the merger and what it merges."""
        return {
            "base": self.base.identity,
            "merger": identity(self.merger),
            "variants": {_plain(variant.name): variant.identity for variant in self.variants},
            "seed": self.seed,
            **(
                {"fitted_on": {name: rows.fingerprint for name, rows in self.fitted_on.items()}}
                if self.fitted_on
                else {}
            ),
        }

    def forecast(self, work: Work, earlier: Mapping[str, Forecast]) -> Forecast:
        """Says what merging takes; nothing where nobody knows how many numbers a variant changes."""
        artifacts = [variant.artifact for variant in self.variants if variant.artifact is not None]
        changed = [changed_numbers(artifact, earlier) for artifact in artifacts]
        counts = [count for count in changed if count is not None]
        return self.merger.forecast(counts) if len(counts) == len(changed) else Forecast()

    def make(self, work: Work) -> Mapping[str, Any]:
        """Merges, and saves the task vector with the merge's diagnostics."""
        from spunge import merging

        merged = self.merged(work)
        merged.task_vector.save(work.output)
        rounding = merging.lost_to_rounding(merged.task_vector, self.base.model.checkpoint())
        return {"norm": merged.task_vector.norm, "diagnostics": {**merged.diagnostics, "rounding": rounding}}

    @property
    def names(self) -> list[str]:
        """The variants as the merger's weights call them."""
        return [_plain(variant.name) for variant in self.variants]

    def merged(self, work: Work) -> Merged:
        """Merges."""
        from spunge import merging

        vectors = {
            _plain(variant.name): change for variant in self.variants if (change := variant.change()) is not None
        }
        checkpoint = self.base.model.checkpoint()
        grams = self._grams(work, frozenset(name for vector in vectors.values() for name in vector))
        options = merging.Options(work.device, self.seed, grams, progress=work.progress)
        return merging.merge(self.merger, vectors, base=checkpoint, options=options)

    def _grams(self, work: Work, changed: frozenset[str]) -> Mapping[str, Mapping[str, Tensor]] | None:
        """Gram matrices of what goes into the changed matrices, of every subset and of the retain set."""
        limit = self.merger.needs().grams
        return {
            name: input_grams(self.base.model, rows, changed, limit, work) for name, rows in self.fitted_on.items()
        } or None


def input_grams(
    base: LanguageModel,
    rows: Corpus,
    changed: frozenset[str],
    limit: int,
    work: Work,
    *,
    first_tokens: bool = True,
) -> Mapping[str, Tensor]:
    """Returns Gram matrices of what goes into linear layers; kept beside the resident base for other tasks.

    Args:
        base: The base model.
        rows: What it reads.
        changed: The checkpoint's names of the tensors asked for; those that are no linear layer's weight are left out.
        limit: How many of the rows are read.
        work: Where and how.
        first_tokens: Whether each row's first token counts.
    """
    from spunge import merging
    from spunge.weights.conversion import ParameterNames

    def grams() -> Mapping[str, Tensor]:
        model, tokenizer = work.resident.base(base)
        stored = ParameterNames(model, base.checkpoint().tensors).renamed
        names = {ours: theirs for ours, theirs in stored.items() if theirs in changed}
        batches = merging.batches_of(tokenizer, rows.texts[:limit], work.device)
        return merging.gram_matrices(model, names, batches, first_tokens=first_tokens)

    return work.resident.cached(("grams", rows.fingerprint, limit, changed, first_tokens), grams)


def changed_numbers(artifact: Artifact, earlier: Mapping[str, Forecast]) -> int | None:
    """How many numbers a task vector that is there already changes, or one that is forecast."""
    from spunge.weights.task_vector import TaskVector

    if not artifact.reused:
        return earlier[artifact.key].changed if artifact.key in earlier else None
    vector = TaskVector.open(artifact.path)
    return sum(vector.shape(name).numel() for name in vector)


def _plain(name: str) -> str:
    return name.removeprefix(SUBSET)

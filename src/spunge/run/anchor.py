"""The stage that turns a variant away from what the retain set's inputs meet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spunge.errors import RecipeError
from spunge.interfaces import Forecast
from spunge.recipe.schema import Anchor
from spunge.rows.sources import Corpus
from spunge.run.identity import identity
from spunge.run.merge import changed_numbers, input_grams
from spunge.run.variant import Base, Variant, VariantTask
from spunge.weights.shape import shape_of

if TYPE_CHECKING:
    from spunge.interfaces import Work

_TOKENS = 128
"""Of a retain row, about: what reading it is foretold by."""


@dataclass(frozen=True, eq=False)
class AnchorToRetain(VariantTask):
    """The task that anchors one variant: another task vector, read at the same λ."""

    variant: Variant
    anchor: Anchor
    retain: Corpus
    base: Base
    stage = "anchor"

    @property
    def inputs(self) -> Mapping[str, Any]:
        """The task vector, without λ as anchoring is linear, and what it is anchored to."""
        assert self.variant.artifact is not None, "the base changes nothing that could be anchored"
        return {
            "base": self.base.identity,
            "vector": self.variant.artifact.key,
            "anchor": identity(self.anchor),
            "retain": self.retain.fingerprint,
        }

    def forecast(self, work: Work, earlier: Mapping[str, Forecast]) -> Forecast:
        """Says what reading the retain rows takes; they are read once for all variants that change the same tensors."""
        assert self.variant.artifact is not None, "the base changes nothing that could be anchored"
        shape = shape_of(self.base.model)
        changed = changed_numbers(self.variant.artifact, earlier)
        return Forecast(
            memory=shape.parameters * shape.bytes + 4 * shape.width * shape.width * len(shape.matrices) * shape.layers,
            disk=None if changed is None else 4 * changed,
            operations=2.0 * shape.inner * self.anchor.rows * _TOKENS,
            changed=changed,
        )

    def make(self, work: Work) -> Mapping[str, Any]:
        """Saves the anchored task vector, and notes how much of it is left.

        Raises:
            RecipeError: No tensor that the variant changes is the weight of a linear layer.
        """
        from spunge import merging
        from spunge.weights.task_vector import TaskVector

        assert self.variant.artifact is not None, "the base changes nothing that could be anchored"
        vector = TaskVector.load(self.variant.artifact.path)
        # First tokens are sinks whose inputs are a hundred times as long as others': C would be theirs alone.
        grams = input_grams(self.base.model, self.retain, frozenset(vector), self.anchor.rows, work, first_tokens=False)
        if not grams:
            raise RecipeError(
                f"anchor: {self.name} changes no weight of a linear layer of {self.base.model.id}, so there is nothing "
                "to anchor: leave `anchor` out"
            )
        anchored = merging.anchored(vector, grams, self.anchor.mu)
        anchored.save(work.output)
        manifest = self.variant.artifact.manifest
        notes = {name: manifest[name] for name in ("steps", "diagnostics") if name in manifest}
        if "diagnostics" in notes:
            rounding = merging.lost_to_rounding(anchored, self.base.model.checkpoint())
            notes["diagnostics"] = {**notes["diagnostics"], "rounding": rounding}
        before, after = manifest["norm"], anchored.norm
        return {**notes, "norm": after, "anchored": len(grams), "left": after / before if before else 1.0}

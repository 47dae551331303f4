"""The task that finds at which λ a variant has done the damage of each budget, so that all are asked at the same."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spunge.interfaces import Forecast
from spunge.recipe.schema import Damage
from spunge.rows.sources import Corpus
from spunge.run.identity import identity
from spunge.run.matching import match
from spunge.run.variant import Base, Variant
from spunge.weights.shape import shape_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from spunge.interfaces import Work

_DRAW = 0
"""One draw of texts for all variants and seeds: another would be another budget."""
_QUESTIONS = 3
"""λ that a budget takes, about: a divergence grows so evenly that two or three do."""
_COPIES = 3
"""Of the logits of a text at once, where the model cannot go on from a cache: logits, both logarithms' difference."""


@dataclass(frozen=True, eq=False)
class MatchDamage:
    """The task that measures one variant's damage along a line of λ, and matches it to every budget."""

    variant: Variant
    damage: Damage
    retain: Corpus
    base: Base
    stage = "damage"

    @property
    def name(self) -> str:
        """The variant's."""
        return self.variant.name

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.variant.seed

    @property
    def inputs(self) -> Mapping[str, Any]:
        """The weights at λ = 1, the texts and the budgets."""
        return {
            "base": self.base.identity,
            "weights": self.variant.identity,
            "retain": self.retain.fingerprint,
            "damage": identity(self.damage),
        }

    def texts(self, tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int, ...], ...]:
        """Returns the texts that damage is measured on, as tokens.

        Raises:
            DataError: The retain set is shorter than one.
        """
        from spunge.asking.divergence import whole_texts

        # Rows often lie sorted by their source; the first few would be of one kind.
        rows = random.Random(_DRAW).sample(self.retain.texts, len(self.retain))
        return whole_texts(tokenizer, rows, tokens=self.damage.tokens, length=self.damage.length)

    def forecast(self, work: Work, earlier: Mapping[str, Forecast]) -> Forecast:
        """Says what reading the texts takes, at as many λ as budgets usually ask for.

        Raises:
            DataError: The retain set is shorter than one text; said where the weights are there, before a run begins.
        """
        if self.base.weights:
            self.texts(self.base.model.load_tokenizer())
        shape = shape_of(self.base.model)
        questions = 1 + _QUESTIONS * len(self.damage.budgets)
        return Forecast(
            memory=shape.parameters * shape.bytes + 4 * _COPIES * self.damage.length * shape.vocabulary,
            disk=0,
            operations=2.0 * shape.inner * self.damage.tokens * questions,
        )

    def make(self, work: Work) -> Mapping[str, Any]:
        """Notes the line and the matches in the manifest."""
        from spunge.asking.divergence import kl_per_token, predict

        model, tokenizer = work.resident.base(self.base.model)
        before = predict(model, self.texts(tokenizer), work.scratch / "base_predictions")
        change = self.variant.change()
        questions = 0

        def damage_at(scale: float) -> float:
            nonlocal questions
            with work.resident.variant(self.base.model, change and change.scaled(scale)) as changed:
                damage = kl_per_token(before, changed)
            questions += 1
            work.progress(f"damage of {self.name}", questions, questions, scale=scale, damage=damage)
            return damage

        matches, line = match(damage_at, self.damage.budgets, longest=self.damage.longest)
        return {
            "tokens": len(before),
            # JSON has no infinity; null stands for a damage without bound.
            "line": [[scale, damage if damage < float("inf") else None] for scale, damage in line.items()],
            "matches": [vars(matched) for matched in matches],
        }


def cautions(matches: Sequence[Mapping[str, Any]]) -> list[str]:
    """Says which variants could not be taken to the budget, and so are compared at less damage than the others."""
    reasons = {
        "unreached": "does less damage than the budget at every λ tried",
        "stepped": "jumps over the budget of damage",
    }
    return [
        f"{match['variant']} (seed {match['seed']}) {reasons[match['status']]}: compared at λ = {match['scale']:.3g}, "
        f"a KL per token of {match['damage']:.3g} of {match['budget']:g}."
        for match in matches
        if match["status"] in reasons
    ]

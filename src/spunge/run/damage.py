"""The task that finds at which λ a variant has done the damage of each budget, so that all are asked at the same."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, inf, isfinite
from typing import TYPE_CHECKING, Any, Literal

from spunge.interfaces import Evaluator, Forecast, LoadedVariant
from spunge.matching import match
from spunge.recipe.schema import Damage
from spunge.rows.items import mean_values
from spunge.rows.sources import Corpus
from spunge.run.identity import identity
from spunge.run.variant import Base, Variant, VariantTask
from spunge.weights.shape import shape_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from spunge.interfaces import Work
    from spunge.weights.task_vector import TaskVector

_DRAW = 0
"""One draw of texts for all variants and seeds: another would be another budget."""
_QUESTIONS = 1.5
"""λ that a budget takes beside λ = 1, about: a divergence grows so evenly that a guess and at times a correction do,
and those for one budget tell of the next. What the base model says is kept for all variants."""
_COPIES = 2
"""Of the logits of a text at once: as the model gives them, and in float32 or their logarithms piece by piece."""
_KEPT = 1 << 30
"""Bytes of multiplied LoRA factors that are kept from one λ to the next."""


@dataclass(frozen=True, eq=False)
class MatchDamage(VariantTask):
    """The task that measures one variant's damage along a line of λ, and matches it to every budget."""

    variant: Variant
    damage: Damage
    budgets: tuple[float, ...]
    texts: Corpus | None
    """Whose damage is matched; None where a suite's is."""
    others: Corpus | None
    """Whose damage is only told: far texts where near ones are matched, and the reverse."""
    base: Base
    suite: Evaluator | None = None
    """The retain suite whose loss is the damage, on items of its own."""
    stage = "damage"

    @property
    def inputs(self) -> Mapping[str, Any]:
        """The weights at λ = 1, the texts or the suite, and the budgets."""
        return {
            **self.weights,
            "texts": self.texts and self.texts.fingerprint,
            "others": self.others and self.others.fingerprint,
            "damage": {**identity(self.damage), "budgets": list(self.budgets)},
            **({"suite": identity(self.suite)} if self.suite else {}),
        }

    def tokens(self, rows: Corpus, tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int, ...], ...]:
        """Returns the texts that damage is measured on, as tokens."""
        from spunge.asking.divergence import whole_texts

        # Rows often lie sorted by their source; the first few would be of one kind.
        drawn = random.Random(_DRAW).sample(rows.texts, len(rows))
        return whole_texts(tokenizer, drawn, tokens=self.damage.tokens, length=self.damage.length)

    def forecast(self, work: Work, earlier: Mapping[str, Forecast]) -> Forecast:
        """Says what reading the texts takes, or asking the suite, at as many λ as budgets usually ask for."""
        questions = ceil(1 + _QUESTIONS * len(self.budgets))
        if self.suite is not None:
            once = self.suite.forecast(self.base.model)
            operations = None if once.operations is None else questions * once.operations
            return replace(once, operations=operations, calls=questions * once.calls, disk=0)
        shape = shape_of(self.base.model)
        told = 0 if self.others is None else 1 + len(self.budgets)
        return Forecast(
            memory=shape.parameters * shape.bytes + 4 * _COPIES * self.damage.length * shape.vocabulary,
            disk=0,
            operations=2.0 * shape.inner * self.damage.tokens * (questions + told),
        )

    def make(self, work: Work) -> Mapping[str, Any]:
        """Notes the line and the matches in the manifest."""
        from spunge.weights.task_vector import TaskVector

        return self.spend(self.variant.change() or TaskVector({}), work)

    def spend(self, change: TaskVector, work: Work) -> Mapping[str, Any]:
        """Returns the line and the matches of a task vector, whether or not it is the variant's."""
        change = change.multiplied_out(_KEPT)
        measure, told = self._matched(work, change), self._divergence(self.others, work, change)
        questions = 0
        with work.resident.scaled(self.base.model, change) as at:

            def damage_at(scale: float) -> float:
                nonlocal questions
                damage = measure(at(scale))
                questions += 1
                work.progress(f"damage of {self.name}", questions, questions, scale=scale, damage=damage)
                return damage

            matches, line = match(damage_at, self.budgets, longest=self.damage.longest)
            # What is only told is measured where somebody looks: at the λ of the recipe, and where a budget is spent.
            seen = {1.0, *(spent.scale for spent in matches)} & line.keys() if told else set[float]()
            others = {0.0: 0.0, **{scale: told(at(scale)) for scale in sorted(seen)}} if told else {}
        return {
            # JSON has no infinity; null stands for a damage without bound.
            "line": [[scale, _bounded(damage), _bounded(others.get(scale, inf))] for scale, damage in line.items()],
            "matches": [
                {**vars(spent), "damage": _bounded(spent.damage), "others": _bounded(others.get(spent.scale, inf))}
                for spent in matches
            ],
        }

    def _matched(self, work: Work, change: TaskVector) -> Callable[[PreTrainedModel], float]:
        """What measures the damage that is matched."""
        if (suite := self.suite) is None:
            measure = self._divergence(self.texts, work, change)
            assert measure is not None, "a recipe without a suite has near texts"
            return measure
        model, tokenizer = work.resident.base(self.base.model)
        name, sign = suite.headline.name, 1 if suite.headline.higher_is_better(suite.goal) else -1

        asked = itertools.count()

        def score(changed: PreTrainedModel, where: str) -> float:
            # Each in a scratch of its own: answers that lie there already are taken for those of the model asked.
            items = suite.evaluate(
                LoadedVariant(self.name, changed, tokenizer, ""), replace(work, scratch=work.scratch / where)
            )
            return mean_values(items, [name]).get(name, -sign * inf)

        before = work.resident.cached(("score", suite.model_dump_json(), self.base.model), lambda: score(model, "base"))
        return lambda changed: sign * (before - score(changed, f"{next(asked):04}")) / abs(before) if before else inf

    def _divergence(
        self, rows: Corpus | None, work: Work, change: TaskVector
    ) -> Callable[[PreTrainedModel], float] | None:
        """What measures the divergence from the base model on some rows.

        What that predicts, and what its layers below the first that changes return, is computed once for all variants
        and λ; it must not be changed yet.
        """
        from spunge.asking.divergence import kl_per_token, predict
        from spunge.asking.lower_layers import LowerLayers, unchanged_layers

        if rows is None:
            return None
        handle, remembered = self.base.model, work.resident.cached
        model, tokenizer = work.resident.base(handle)
        texts = self.tokens(rows, tokenizer)
        before = remembered(("predictions", texts, handle), lambda: predict(model, texts, work.scratch))
        changed = frozenset(work.resident.names(handle).parameters(change))
        count = remembered(("unchanged", texts, changed, handle), lambda: unchanged_layers(model, changed, texts[0]))
        below = (
            remembered(("lower layers", texts, count, handle), lambda: LowerLayers(model, texts, count))
            if count
            else None
        )
        return lambda changed: kl_per_token(before, changed, below=below)


def _bounded(damage: float) -> float | None:
    return damage if isfinite(damage) else None


def described(
    variant: Variant, manifest: Mapping[str, Any], matching: Literal["near", "far"]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns what a run's manifest notes of one task: where each budget is spent, and the points of the curve."""
    first, second = ("near", "far") if matching == "near" else ("far", "near")
    who = {"variant": variant.name, "seed": variant.seed}
    matches = [
        {
            **who, "matching": matching, "budget": spent["budget"], "scale": spent["scale"], "status": spent["status"],
            first: spent["damage"], second: spent["others"],
        }
        for spent in manifest["matches"]
    ]  # fmt: skip
    curve = [{**who, "scale": scale, first: damage, second: others} for scale, damage, others in manifest["line"]]
    return matches, curve


def cautions(matches: Sequence[Mapping[str, Any]], headline: float) -> list[str]:
    """Says which variants could not be taken to the budget, and so are compared at less damage than the others."""
    reasons = {"unreached": "does less damage than the budget at every λ tried", "stepped": "jumps over the budget"}
    return [
        _caution(match, reasons[match["status"]])
        for match in matches
        if match["status"] in reasons and match["budget"] == headline
    ]


def _caution(match: Mapping[str, Any], reason: str) -> str:
    who, damage, at = f"{match['variant']} (seed {match['seed']})", match[match["matching"]], f"{match['scale']:.3g}"
    if not damage:
        return f"{who} does no damage at any λ, as where nothing is changed: compared at λ = {at}."
    return (
        f"{who} {reason}: compared at λ = {at}, a damage {match['matching']} what must go of {damage:.3g} of "
        f"{match['budget']:g}."
    )

"""The task that chooses what each subset counts for in a merge, for the group of which most is left."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import polars as pl

from spunge.files import replace_text
from spunge.interfaces import Evaluator, Forecast, LoadedVariant
from spunge.recipe.schema import Damage
from spunge.rows.items import ItemTable, attribute_values
from spunge.rows.sources import Corpus
from spunge.run.damage import MatchDamage
from spunge.run.identity import identity
from spunge.run.keys import key
from spunge.run.merge import Merge
from spunge.run.sweep import score_of, share_left
from spunge.run.variant import Base, Variant
from spunge.run.weighing import choose_weights

if TYPE_CHECKING:
    from spunge.interfaces import Work

_TRIALS_PER_SUBSET = 4
"""With equal weights first: of five subsets 21, which is each doubled and halved, and as many again."""
_FEWEST = 5
"""Items of a group; of fewer a share says nothing, and the worst would be drawn by chance."""
_TRIALS = "trials.json"

RULE = "the least that is left of any group, at the headline budget of damage; of equals the least on average"


@dataclass(frozen=True, eq=False)
class FitWeights:
    """The task that chooses the weights of one merge, on items that no table shows."""

    merge: Merge
    """Of the subsets, whose weights are asked for."""
    damage: Damage
    near: Corpus | None
    """Whose damage is matched; None where a suite's is."""
    suite: Evaluator | None
    """The retain suite whose loss is the damage."""
    asked: tuple[Evaluator, ...]
    """The forget suites, on the part of their items that is to choose on."""
    stage = "weights"

    @property
    def name(self) -> str:
        """The merged variant's."""
        return self.merge.name

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.merge.seed

    @property
    def base(self) -> Base:
        """What all is merged into."""
        return self.merge.base

    @property
    def most(self) -> int:
        """How many weights are tried at the most."""
        return 1 + _TRIALS_PER_SUBSET * len(self.merge.variants)

    @property
    def inputs(self) -> Mapping[str, Any]:
        """What the merge depends on, the budget and its texts or suite, and what is asked."""
        return {
            **self.merge.inputs,
            "damage": {**identity(self.damage), "budgets": [self.damage.headline]},
            "texts": self.near and self.near.fingerprint,
            "suite": identity(self.suite),
            "asked": [identity(evaluator) for evaluator in self.asked],
            "most": self.most,
        }

    def forecast(self, work: Work, earlier: Mapping[str, Forecast]) -> Forecast:
        """Says what as many merges, matches and evaluations take as there may be trials."""
        merged = self.merge.forecast(work, earlier)
        parts = [self._match.forecast(work, earlier), *(one.forecast(self.base.model) for one in self.asked)]
        operations = [part.operations for part in (merged, *parts) if part.operations is not None]
        memory = [part.memory for part in parts if part.memory is not None]
        return Forecast(
            memory=max(memory, default=0) + (merged.memory or 0) + (merged.disk or 0) if merged.disk else None,
            disk=0,
            operations=self.most * sum(operations) if len(operations) == 1 + len(parts) else None,
            calls=self.most * sum(part.calls for part in parts),
            merged=self.most * merged.merged,
        )

    def make(self, work: Work) -> Mapping[str, Any]:
        """Notes the weights in the manifest, and all that were tried.

        Each trial lies in the scratch as soon as it is done: a killed attempt is taken up behind it.
        """
        file = work.scratch / _TRIALS
        trials: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
        base = LoadedVariant("base", *work.resident.base(self.base.model), self.base.digest)
        before = {
            evaluator.suite: work.resident.cached(
                ("items", evaluator.model_dump_json(), self.base.model),
                lambda evaluator=evaluator: evaluator.evaluate(base, replace(work, scratch=work.scratch / "base")),
            )
            for evaluator in self.asked
        }

        def left(weights: Mapping[str, float]) -> tuple[float, ...]:
            known = next((trial for trial in trials if trial["weights"] == weights), None)
            if known is None:
                # A scratch of its own: answers that lie there already are taken for those of the model asked.
                known = self._try(weights, before, replace(work, scratch=work.scratch / f"{len(trials):04}"))
                trials.append(known)
                replace_text(file, json.dumps(trials))
            work.progress(f"weights of {self.name}", len(trials), self.most, left=known["worst"])
            return known["worst"], known["mean"]

        names = sorted(self.merge.names)
        chosen, _ = choose_weights(names, left, most=self.most)
        return {"weights": chosen, "trials": trials}

    @property
    def _match(self) -> MatchDamage:
        merged = Variant(self.name, "merged", self.seed)
        return MatchDamage(merged, self.damage, (self.damage.headline,), self.near, None, self.base, self.suite)

    def _try(self, weights: Mapping[str, float], before: Mapping[str, ItemTable], work: Work) -> dict[str, Any]:
        merger = self.merge.merger.model_copy(update={"weights": dict(weights)})
        merge = replace(self.merge, merger=merger)
        change = merge.merged(work).task_vector
        work.scratch.mkdir(exist_ok=True)
        [spent] = self._match.spend(change, work)["matches"]
        shares: dict[str, float] = {}
        where = {"merge": merge.inputs, "scale": spent["scale"]}
        _, tokenizer = work.resident.base(self.base.model)
        with work.resident.scaled(self.base.model, change) as at:
            variant = LoadedVariant(self.name, at(spent["scale"]), tokenizer, key("weights", where))
            for evaluator in self.asked:
                shares |= group_shares(evaluator.evaluate(variant, work), before[evaluator.suite], evaluator)
        return {
            "weights": dict(weights),
            "scale": spent["scale"],
            "damage": spent["damage"],
            "left": shares,
            "worst": round(max(shares.values(), default=1.0), 9),
            "mean": round(sum(shares.values()) / max(len(shares), 1), 9),
        }


def group_shares(items: ItemTable, before: ItemTable, evaluator: Evaluator) -> dict[str, float]:
    """Returns what is left of the base model's score on each group of a suite.

    Args:
        items: What a variant answered.
        before: What the base model answered to the same.
        evaluator: The suite.

    Returns:
        `suite: attribute = value` → the share, of every value that has some items; the suite's alone where none has.
    """
    groups: dict[str, set[str]] = {}
    for item, attributes in before.select("item", "attributes").unique().iter_rows():
        for attribute, values in attribute_values(attributes).items():
            for value in values:
                groups.setdefault(f"{evaluator.suite}: {attribute} = {value}", set()).add(item)
    chosen = {name: members for name, members in sorted(groups.items()) if len(members) >= _FEWEST}
    everything = {evaluator.suite: set(before["item"].unique())}
    shares: dict[str, float] = {}
    for name, members in (chosen or everything).items():
        of_group = pl.col("item").is_in(sorted(members))
        share = share_left(
            evaluator, score_of(items.filter(of_group), evaluator), score_of(before.filter(of_group), evaluator)
        )
        if share is not None:
            shares[name] = share
    return shares


def described(task: FitWeights, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a run's manifest notes of one fit."""
    return {"variant": task.name, "seed": task.seed, "rule": RULE, **{n: manifest[n] for n in ("weights", "trials")}}

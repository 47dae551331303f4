"""Which attacks a recipe's `robustness` comes to: on every suite of what must go, as far as each can be asked of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import ValidationError

from spunge.errors import SpungeError, first_line
from spunge.evaluators.attacks import Attack, Material
from spunge.interfaces import Evaluator
from spunge.recipe.schema import Experiment
from spunge.rows.items import load_items
from spunge.weights.language_model import LanguageModel

SHARE = 0.2
"""Of the operations of a variant's evaluation, that the cheap attacks may take together: of a small model, what they do
beside asking (copying and rounding weights) takes about as long again, and they are to take less than half in all."""
_FEWEST = 8
"""Items of a sample: of fewer no interval says anything."""


@dataclass(frozen=True)
class Robustness:
    """The attacks that every variant is put to."""

    attacks: Sequence[Attack] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Attack and suite → why it cannot be asked."""


def robustness(experiment: Experiment, suites: Sequence[Evaluator]) -> Robustness:
    """Returns the attacks of an experiment, with their suites cut to samples where they are to be cheap.

    Args:
        experiment: The recipe.
        suites: Its suites as they are asked.
    """
    retain = experiment.retain.sources if experiment.retain else ()
    forget = [
        source.model_copy(update={"where": experiment.forget.where})
        if source.where is None and experiment.forget.where else source
        for source in experiment.forget.sources
    ]  # fmt: skip
    kept = next((one for one in suites if one.goal == "retain" and not isinstance(one, Attack)), None)
    attribute = getattr(experiment.split, "column", None)
    material = Material(tuple(forget), tuple(retain), attribute=attribute, kept=kept)
    return chosen(experiment.attacks, suites, material, experiment.model, sampled=experiment.robustness == "cheap")


def chosen(
    attacks: Sequence[type[Attack]], suites: Sequence[Evaluator], material: Material, base: LanguageModel, *,
    sampled: bool,
) -> Robustness:  # fmt: skip
    """Returns each attack on each suite of what must go, and why others cannot be asked.

    Args:
        attacks: Which.
        suites: All that a variant is asked.
        material: What the attacker has.
        base: The base model.
        sampled: Whether they are asked with few settings, and may take no more than `SHARE` of what the suites take.
    """
    asked: list[Attack] = []
    left_out: dict[str, str] = {}
    for suite in suites:
        if suite.goal != "forget" or isinstance(suite, Attack):
            continue
        for kind in attacks:
            try:
                for attack in kind.against(suite, material, (sampled and kind.cheap) or {}):
                    attack.check()
                    attack.forecast(base)
                    asked.append(attack)
            except (SpungeError, ValidationError) as error:
                reason = first_line(error).removeprefix(f"{suite.suite}: {kind.named()}: ")
                left_out[f"{kind.named()} on {suite.suite}"] = reason
    return Robustness([*_samples(asked, suites, base)] if sampled else asked, left_out)


def _samples(attacks: Sequence[Attack], suites: Sequence[Evaluator], base: LanguageModel) -> Iterator[Attack]:
    """The attacks, each on as large a share of its suite's items as they may all have."""
    whole = sum(suite.forecast(base).operations or 0.0 for suite in suites if not isinstance(suite, Attack))
    wanted = sum(attack.forecast(base).operations or 0.0 for attack in attacks)
    share = SHARE * whole / wanted if wanted else 1.0
    for attack in attacks:
        of = attack.of
        if share >= 1 or "limit" not in type(of).model_fields:
            yield attack
            continue
        chosen = {name: getattr(of, name) for name in ("where", "limit", "part") if hasattr(of, name)}
        count = max(_FEWEST, int(share * len(load_items(getattr(of, "sources"), **chosen))))  # noqa: B009
        yield attack.model_copy(update={"of": of.model_copy(update={"limit": count})})

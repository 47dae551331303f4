"""The λ at which a variant has done a stated damage, so that variants are compared at the same.

At a λ of its own choice each variant trades what must go against what must stay somewhere else, and "kept less" may
only mean that it chose a larger λ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isnan, log
from typing import Literal


@dataclass(frozen=True)
class Match:
    """Where on a line of λ a budget of damage is spent."""

    budget: float
    scale: float
    """The λ; where the budget was not matched, of the last point below it; 1 where no λ does any damage."""
    damage: float
    """What was measured there."""
    status: Literal["matched", "stepped", "unreached"]
    """`matched`: within the tolerance below the budget. `stepped`: the damage jumps over it. `unreached`: no λ that was
    tried does so much."""


def match(
    damage_at: Callable[[float], float],
    budgets: Sequence[float],
    *,
    longest: float = 8.0,
    tolerance: float = 0.05,
    finest: float = 1e-3,
) -> tuple[list[Match], dict[float, float]]:
    """Finds for each budget the λ whose damage lies within the tolerance below it.

    λ = 1 is always asked, every λ once, and it serves all budgets. The damage is taken to be 0 at λ = 0, and over
    budget for good once it is: of several crossings the lowest that was met counts, which is the safe one.

    Args:
        damage_at: The damage of a λ; infinite where nothing is left, never nan.
        budgets: All above 0.
        longest: The largest λ to try.
        tolerance: 0.05 takes damages of 0.95 to 1 times the budget.
        finest: λ nearer together than this share are one step.

    Returns:
        The matches, in the order of the budgets; every λ that was asked with its damage, for the curve.

    Raises:
        ValueError: A budget is not above 0, or a damage is nan.
    """
    if not all(budget > 0 for budget in budgets):
        raise ValueError(f"budgets above 0 are needed, not {list(budgets)}")
    line = {0.0: 0.0}

    def ask(scale: float) -> float:
        if scale not in line:
            line[scale] = damage_at(scale)
            if isnan(line[scale]):
                raise ValueError(f"the damage at λ = {scale:g} is not a number")
        return line[scale]

    ask(min(1.0, longest))
    by_budget = {budget: _match(ask, line, budget, longest, tolerance, finest) for budget in sorted(budgets)}
    return [by_budget[budget] for budget in budgets], dict(sorted(line.items()))


def _match(
    ask: Callable[[float], float],
    line: dict[float, float],
    budget: float,
    longest: float,
    tolerance: float,
    finest: float,
) -> Match:
    """Widens until the budget is passed, then narrows until it is met."""
    middle = (1 - tolerance / 2) * budget
    guesses = 0
    while True:
        low, high = _bracket(line, budget)
        if line[low] >= (1 - tolerance) * budget:
            return Match(budget, low, line[low], "matched")
        if high is None and low >= longest:
            return Match(budget, low if line[low] > 0 else 1.0, line[low], "unreached")
        if high is None:
            # As far as a guess has it, but neither a hair's breadth nor for ever.
            ask(min(low * min(max(_guess(line, middle) / low, 1.1), 8.0), longest))
            continue
        if high - low <= finest * high:
            return Match(budget, low, line[low], "stepped")
        # Every fourth step halves, lest one end never moves.
        guess = (low + high) / 2 if guesses == 3 else _guess(line, middle)
        # Never nearer to an end than a tenth of the finest step, or a jump would be asked for ever.
        margin = 0.1 * finest * (high - low)
        guesses = (guesses + 1) % 4
        ask(min(max(guess, low + margin), high - margin))


def _guess(line: Mapping[float, float], damage: float) -> float:
    """Returns the λ of a damage by the power law through the two points nearest to it; a divergence grows about as λ².

    Points without any damage, or without bound, say nothing; where there are no others it is twice the largest λ.
    """
    known = [(scale, done) for scale, done in line.items() if 0 < done < inf]
    nearest = sorted(known, key=lambda point: abs(log(point[1] / damage)))[:2]
    if not nearest:
        largest = max(line)
        return 2 * largest if line[largest] == 0 else largest / 2
    power = 2.0
    if len(nearest) == 2:
        (one, little), (other, much) = nearest
        slope = log(much / little) / log(other / one)
        power = slope if 0.5 <= slope <= 8 else power
    scale, done = nearest[0]
    return scale * (damage / done) ** (1 / power)


def _bracket(line: dict[float, float], budget: float) -> tuple[float, float | None]:
    """Returns the neighbours between which the budget is passed first; no upper one where it is not."""
    low = 0.0
    for scale in sorted(line):
        if line[scale] > budget:
            return low, scale
        low = scale
    return low, None

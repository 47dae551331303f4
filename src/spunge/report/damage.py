"""What each variant does to the rest where it is compared, and what is gone along its curve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

from spunge.report.artifacts import CurvePoint, Damage, Match
from spunge.report.findings import Findings
from spunge.variants import BASE, JOINT, MERGED, phrase_of

ALIKE = 0.05
"""How far apart the far damage of two variants may be, as a share, and still count as the same; so is a match."""


@dataclass(frozen=True)
class VariantDamage:
    """What one variant does to the rest at the λ at which it is compared, the mean over seeds."""

    variant: str
    scale: float
    """The λ."""
    near: float | None
    """KL per token (or the drop of the suite that the budget is of) near what must go; None: beyond all bounds."""
    far: float | None
    """The same on texts far from it; None also where none were given."""
    budget: float
    status: str
    """`matched`, `stepped` (it jumps over the budget) or `unreached` (it does less at every λ), the worst of the seeds.
    """

    @property
    def text(self) -> str:
        """What it is, in words."""
        at = f"λ = {self.scale:.3g}: {kl(self.near)} near"
        at += "" if self.far is None else f", {kl(self.far)} far"
        reasons = {"unreached": "never reaches the budget", "stepped": "jumps over the budget"}
        return f"{at} ({reasons[self.status]})" if self.status in reasons else at


def by_variant(findings: Findings) -> tuple[VariantDamage, ...]:
    """Returns what each variant does where it is compared, in the order of tables; empty where that is not known."""
    damage = findings.damage
    if damage is None:
        return ()
    spent = []
    for variant in findings.main_variants:
        matches = [match for match in damage.matches if match.variant == variant and _leads(match, damage)]
        if matches:
            worst = max(("matched", "stepped", "unreached").index(match.status) for match in matches)
            spent.append(
                VariantDamage(
                    variant, _mean([match.scale for match in matches]) or 0.0,
                    _mean([match.near for match in matches]), _mean([match.far for match in matches]),
                    damage.headline, ("matched", "stepped", "unreached")[worst],
                )
            )  # fmt: skip
    return tuple(spent)


def matched(findings: Findings, rival: str) -> bool:
    """Whether SPUNGE and a rival were asked at the same damage; one of a suite as nearly as its steps allow."""
    if findings.damage is None or (both := _both(findings, rival)) is None:
        return False
    steps = findings.damage.unit != Damage.model_fields["unit"].default
    if all(one.status == "matched" or (steps and one.status == "stepped") for one in both):
        return True
    near = [one.near for one in both if one.near is not None]
    return len(near) == 2 and min(near) >= (1 - ALIKE) * max(near)


def measured(findings: Findings, rival: str) -> bool:
    """Whether it is known what damage SPUNGE and a rival do where they are compared."""
    return _both(findings, rival) is not None


def _both(findings: Findings, rival: str) -> tuple[VariantDamage, VariantDamage] | None:
    spent = {one.variant: one for one in by_variant(findings)}
    return (spent[MERGED.name], spent[rival]) if {MERGED.name, rival} <= set(spent) else None


def budget(findings: Findings) -> str:
    """Returns the headline budget in words."""
    damage = findings.damage
    assert damage is not None, "asked only of what was matched"
    return f"{kl(damage.headline)} {damage.unit}"


def unlike(findings: Findings, rival: str) -> str:
    """Says how the damage that SPUNGE does differs from a rival's; empty where it does not, or was not measured."""
    both = _both(findings, rival)
    if findings.damage is None or both is None or matched(findings, rival):
        return ""
    merged, other = both
    more = "less" if _less(merged, other) else "more"
    most = ", the most it does at any λ" if more == "less" and merged.status == "unreached" else ""
    figures = f"{kl(merged.near)} against {kl(other.near)} {findings.damage.unit}{most}"
    return f"at {more} damage to the rest than {phrase_of(rival)} ({figures})"


def held_back(findings: Findings, rival: str, *, better: bool | None) -> str:
    """Says that the one who is not ahead does less damage than the other, and so might go further; empty where not.

    Args:
        findings: The run.
        rival: Whom SPUNGE is compared with.
        better: Whether SPUNGE seems ahead; None: neither does.
    """
    both = _both(findings, rival)
    if both is None or matched(findings, rival):
        return ""
    less, more = both if _less(*both) else both[::-1]
    if better is not None and (less.variant == MERGED.name) == better:
        return ""
    if less.status == "unreached":
        return f"{phrase_of(less.variant)} never does so much damage ({kl(less.near)} at most)"
    return f"{phrase_of(less.variant)} does less damage ({kl(less.near)} against {kl(more.near)})"


def _less(one: VariantDamage, other: VariantDamage) -> bool:
    return one.near is not None and (other.near is None or one.near < other.near)


def far_damages(findings: Findings, rival: str) -> tuple[float, float] | None:
    """Returns what SPUNGE and a rival do far from what must go where they are compared; None where it is not known."""
    if (both := _both(findings, rival)) is None:
        return None
    merged, other = (one.far for one in both)
    return None if merged is None or other is None else (merged, other)


def at_one(findings: Findings) -> tuple[float, float] | None:
    """Returns what SPUNGE and joint unlearning do to near texts at λ = 1; None where it is not known, or the same."""
    damage = findings.damage
    if damage is None:
        return None
    merged, joint = (
        _mean([point.near for point in damage.curve if point.variant == name and point.scale == 1.0])
        for name in (MERGED.name, JOINT.name)
    )
    if not merged or not joint or 0.8 <= merged / joint <= 1.25:
        return None
    return merged, joint


def traced(findings: Findings) -> dict[str, Any]:
    """Returns what `results.json` holds of damage: what the manifest notes, with what is gone along each curve.

    `area` is the mean share forgotten over the damage from 0 to the largest budget at which all were asked: the area
    under the curve of straight lines through the points, divided by that budget. It takes two points or more.
    """
    damage = findings.damage
    assert damage is not None, "asked only of what was measured"
    names = {(one.variant, one.seed, one.scale): one.name for one in damage.elsewhere}
    names |= {(one.variant, one.seed, one.scale): one.variant for one in damage.matches if _leads(one, damage)}
    curve = []
    for point in damage.curve:
        name = names.get((point.variant, point.seed, point.scale))
        share = 0.0 if point.scale == 0 else None if name is None else gone(findings, name, point.seed)
        curve.append(point.model_copy(update={"forgotten": share}))
    content = damage.model_copy(update={"curve": tuple(curve)}).model_dump(mode="json")
    content["area"] = [
        {"variant": variant, "seed": seed, "budget": max(damage.budgets), "area": area}
        for variant, seed in dict.fromkeys((point.variant, point.seed) for point in curve)
        if (area := _area([p for p in curve if (p.variant, p.seed) == (variant, seed)], max(damage.budgets)))
        is not None
    ]
    return content


def gone(findings: Findings, name: str, seed: int) -> float | None:
    """Returns the share of what the base model had that a variant of one seed lost, the mean over the forget suites."""
    shares = []
    for column in findings.leading("forget"):
        base = findings.score_of_seed(BASE.name, seed, column)
        score, floor = findings.score_of_seed(name, seed, column), findings.chance(column) or 0.0
        if base is None or score is None or base.value <= floor:
            return None
        if column.higher_is_better:  # a perplexity that should rise counts as its ratio, turned over
            if column.share or score.value <= 0:
                return None
            shares.append(1 - base.value / score.value)
            continue
        shares.append((base.value - score.value) / (base.value - floor))
    return sum(shares) / len(shares) if shares else None


def _leads(match: Match, damage: Damage) -> bool:
    return match.matching == "near" and match.budget == damage.headline


def _area(curve: Sequence[CurvePoint], budget: float) -> float | None:
    """The mean height of the curve up to a budget, which its last point meets within the tolerance of a match."""
    points = sorted((p.near, p.forgotten) for p in curve if p.near is not None and p.forgotten is not None)
    points = [(near, height) for near, height in points if near <= budget]
    if len(points) < 3 or points[-1][0] < (1 - ALIKE) * budget:  # the first is 0
        return None
    pieces = ((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in pairwise(points))
    return sum(pieces) / points[-1][0]


def kl(value: float | None) -> str:
    """Writes a damage to two digits."""
    return "without bound" if value is None else f"{value:.2g}"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None

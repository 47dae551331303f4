"""What each variant does to the rest where it is compared, and what that leaves of a comparison: in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spunge.report.findings import Findings
from spunge.variants import JOINT, MERGED, phrase_of

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
        matches = [match for match in damage.matches if match.variant == variant and match.matching == "near"]
        matches = [match for match in matches if match.budget == damage.headline]
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
    """Whether SPUNGE and a rival were asked at the same damage, or as near to it as their steps allow."""
    statuses = {one.variant: one.status for one in by_variant(findings)}
    return all(statuses.get(name) in ("matched", "stepped") for name in (MERGED.name, rival))


def budget(findings: Findings) -> str:
    """Returns the headline budget in words."""
    damage = findings.damage
    assert damage is not None, "asked only of what was matched"
    return f"{kl(damage.headline)} {damage.unit}"


def caveat(findings: Findings, rival: str, *, better: bool = True) -> str:
    """Says why a difference from a rival is none of method: one of the two did more damage. Empty where none did.

    Args:
        findings: The run.
        rival: Whom SPUNGE is compared with.
        better: Whether SPUNGE seems ahead; it is then excused only by damage of its own, else by the rival's.
    """
    spent = {one.variant: one for one in by_variant(findings)}
    merged, other = spent.get(MERGED.name), spent.get(rival)
    if merged is None or other is None:
        return ""
    for one, behind in ((other, better), (merged, not better)):
        if one.status == "unreached" and behind:
            return f"{phrase_of(one.variant)} never does so much damage ({kl(one.near)} at most)"
    if merged.far is None or other.far is None:
        return ""
    ahead, behind = (merged, other) if better else (other, merged)
    if ahead.far is not None and behind.far is not None and ahead.far > (1 + ALIKE) * behind.far:
        return (
            f"at the same damage near what must go, {phrase_of(ahead.variant)} does more far from it "
            f"({kl(ahead.far)} against {kl(behind.far)})"
        )
    return ""


def at_own_strength(findings: Findings) -> list[str]:
    """Says that at λ = 1 the two do different damage, so that a comparison there would say another thing."""
    damage = findings.damage
    if damage is None:
        return []
    at_one = {
        name: _mean([p.near for p in damage.curve if p.variant == name and p.scale == 1.0])
        for name in (MERGED.name, JOINT.name)
    }
    merged, joint = at_one[MERGED.name], at_one[JOINT.name]
    if merged is None or joint is None or not (merged and joint) or 0.8 <= merged / joint <= 1.25:
        return []
    gone = {
        name: _mean([p.forgotten for p in damage.curve if p.variant == name and p.scale == 1.0])
        for name in (MERGED.name, JOINT.name)
    }
    ours, theirs = gone[MERGED.name], gone[JOINT.name]
    outcome = ""
    if ours is not None and theirs is not None:
        outcome = (
            f", and it forgot {'less' if ours < theirs else 'more'} ({100 * ours:.0f} against {100 * theirs:.0f} %)"
        )
    return [f"At λ = 1 the two do different damage ({kl(merged)}, joint {kl(joint)}){outcome}."]


def kl(value: float | None) -> str:
    """Writes a damage to two digits."""
    return "without bound" if value is None else f"{value:.2g}"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None

"""Which variants are models to judge and compare at all: the one rule that headline, numbers and contests ask."""

from __future__ import annotations

from spunge.report import damage
from spunge.report.changes import FLUENCY_MARGIN, change_from_base, keeping, one_letter
from spunge.report.findings import Column, Findings
from spunge.report.points import BAD, MARGIN, where
from spunge.variants import BASE, phrase_of

DEGENERATE = 0.3
"""A model of which so large a share of completions is degenerate writes no fluent text any more."""


def damages(findings: Findings, name: str) -> list[str]:
    """Says, for each retain suite and what tells of fluent language, what a variant lost beyond the margin."""
    return [
        f"{column.metric.in_words} on {where(column)} {change_from_base(findings, column, name)}"
        for column in _lost(findings, name)
    ]


def destroyed(findings: Findings, name: str) -> bool:
    """Whether half of what the base model had of anything that must stay is surely gone, or its fluency."""
    return any(_ruined(findings, column, name) for column in _lost(findings, name))


def wrecked(findings: Findings, name: str) -> bool:
    """Whether it is what a variant writes that is destroyed."""
    return any(_ruined(findings, column, name) for column in _lost(findings, name) if column in findings.fluency())


def broken(findings: Findings, name: str) -> str:
    """Says why a variant is no model to judge or to compare: NaN, destroyed, one answer to all; empty where it is."""
    who = phrase_of(name)
    if suites := " and ".join(f"“{suite}”" for suite, variant in findings.unscored if variant == name):
        return f"{who} gave NaN on {suites}"
    if destroyed(findings, name):
        return f"{who} destroyed the model ({'; '.join(damages(findings, name))})"
    alike = [where(column) for column in findings.leading("forget") if one_letter(findings, column, name)]
    return f"{who} gives nearly always the same answer on {' and '.join(alike)}" if alike else ""


def incomparable(findings: Findings, one: str, rival: str) -> dict[str, str]:
    """Returns why two variants cannot be compared: who is broken, or damaged at its own strength → the reason."""
    reasons = {name: reason for name in (one, rival) if (reason := broken(findings, name))}
    if reasons or findings.runs or damage.measured(findings, rival):
        return reasons
    return {
        name: f"{phrase_of(name)} damaged the model ({'; '.join(lost)})"
        for name in (one, rival)
        if (lost := damages(findings, name))
    }


def lost_alone(findings: Findings, one: str, rival: str) -> str:
    """Says which one of two variants lost more than the margin of what must stay; empty of both or neither."""
    lost = {name: damages(findings, name) for name in (one, rival)}
    if bool(lost[one]) == bool(lost[rival]):
        return ""
    who = one if lost[one] else rival
    return f"{phrase_of(who)} lost more there than {100 * MARGIN:.0f} % of what must stay ({'; '.join(lost[who])})"


def _lost(findings: Findings, name: str) -> list[Column]:
    allowed = dict.fromkeys(findings.fluency(), FLUENCY_MARGIN) | dict.fromkeys(findings.leading("retain"), MARGIN)
    points = {column: keeping(findings, column, margin, name) for column, margin in allowed.items()}
    return [column for column, point in points.items() if point is not None and point.status == BAD]


def _ruined(findings: Findings, column: Column, name: str) -> bool:
    """Whether a column that was surely damaged is at half of the base model's or less; what should be low, at twice."""
    base, score = findings.score(BASE.name, column), findings.score(name, column)
    if base is None or score is None:
        return False
    if not column.higher_is_better:
        return score.value >= max(2 * base.value, DEGENERATE if column.share else 0.0)
    floor = findings.chance(column) or 0.0
    return base.value > floor and score.value - floor <= (base.value - floor) / 2

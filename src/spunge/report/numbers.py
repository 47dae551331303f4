"""The three numbers of a first screen: forgotten, kept, better than joint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from spunge.report.changes import forgotten, to_forget
from spunge.report.contests import Contest
from spunge.report.findings import Findings
from spunge.report.points import BAD, GOOD, MARGIN, UNSURE, Point, present, with_digits, worst_of
from spunge.report.tables import decimals, signed
from spunge.report.usable import broken
from spunge.variants import BASE, JOINT, MERGED


@dataclass(frozen=True)
class Number:
    """One figure of a first screen, in per cent or points, with what it comes to in a word."""

    label: str
    word: str
    status: str
    value: float | None
    low: float | None
    high: float | None
    unit: str
    n: int
    """Items."""

    @property
    def text(self) -> str:
        """The value with its interval, as many digits as that lets stand."""
        if self.value is None:
            return "—"
        write = signed if self.unit == "points" else with_digits
        if self.low is None or self.high is None:
            return f"{write(self.value, 0)} {self.unit}"
        digits = decimals(self.low, self.high)
        ends = f"[{write(self.low, digits)}, {write(self.high, digits)}]"
        return f"{write(self.value, digits)} {self.unit} {ends}"


def forgotten_number(findings: Findings, points: Sequence[Point]) -> Number:
    """The share of what must go that is gone, every headline figure counting the same."""
    shares = present(forgotten(findings, column) for column in findings.leading("forget"))
    worst = worst_of(points) or UNSURE
    word = {GOOD: "forgotten", UNSURE: "not settled" if points else "not measured", BAD: "went wrong"}[worst]
    if broken(findings, MERGED.name):
        word, worst = "no sign of forgetting", BAD
    if not shares:
        return Number("Forgotten", word, worst, None, None, None, "%", 0)
    # Below guessing is not more than forgotten.
    capped = [(min(share, 1.0), low and min(low, 1.0), high and min(high, 1.0)) for share, low, high, _ in shares]
    value, ends = _mean(capped)
    return Number("Forgotten", word, worst, value, *ends, "%", sum(n for *_, n in shares))


def kept_number(findings: Findings, points: Sequence[Point]) -> Number:
    """What is kept of what must stay, of the suite that lost most: a perplexity turned over."""
    shares = []
    for column in findings.leading("retain"):
        row = findings.comparison(MERGED.name, BASE.name, column)
        if row is None or row.relative is None or row.relative_ends is None:
            continue
        ends = tuple(1 + end for end in row.relative_ends)
        value = 1 + row.relative
        if not column.higher_is_better and min(value, *ends) > 0:
            value, ends = 1 / value, (1 / ends[1], 1 / ends[0])
        shares.append((value, ends[0], ends[1], row.n, column.name))
    worst = worst_of(points)
    words = {GOOD: f"within {100 * MARGIN:.0f} %", UNSURE: "not settled", BAD: "damaged", None: "not measured"}
    if not shares:
        return Number("Kept", words[worst], worst or UNSURE, None, None, None, "%", 0)
    value, low, high, n, name = min(shares)
    label = "Kept" if len(shares) == 1 else f"Kept (least: {name})"
    return Number(label, words[worst], worst or UNSURE, 100 * value, 100 * low, 100 * high, "%", n)


def joint_number(findings: Findings, contests: Sequence[Contest]) -> Number:
    """How much more than joint unlearning was forgotten, in points of the headline figures, each counting the same."""
    joint = next((one for one in contests if one.rival == JOINT.name), None)
    label = "Better than joint" + (" at the same damage" if joint and joint.matched else "")
    if joint is None:
        return Number(label, "not compared", UNSURE, None, None, None, "points", 0)
    if joint.word == "not comparable":
        return Number(label, joint.word, joint.status, None, None, None, "points", 0)
    apart, n = [], 0
    for column in to_forget(findings):
        row = findings.comparison(MERGED.name, JOINT.name, column)
        if row is not None and column.share:
            sign = 1 if column.higher_is_better else -1
            low, high = (None, None) if row.ends is None else sorted(sign * end for end in row.ends)
            apart.append((sign * row.difference, low, high))
            n += row.n
    if not apart:
        return Number(label, joint.word, joint.status, None, None, None, "points", 0)
    value, ends = _mean(apart)
    return Number(label, joint.word, joint.status, value, *ends, "points", n)


def _mean(
    values: Sequence[tuple[float, float | None, float | None]],
) -> tuple[float, tuple[float | None, float | None]]:
    """The mean of shares with its interval, in per cent, as if they were independent of each other."""
    mean = sum(value for value, _, _ in values) / len(values)
    if any(low is None or high is None for _, low, high in values):
        return 100 * mean, (None, None)
    below = sqrt(sum((value - (low or 0.0)) ** 2 for value, low, _ in values)) / len(values)
    above = sqrt(sum(((high or 0.0) - value) ** 2 for value, _, high in values)) / len(values)
    return 100 * mean, (100 * (mean - below), 100 * (mean + above))

"""How a command that made a report ends: the verdict, its three numbers and a line a rival, for a terminal."""

from __future__ import annotations

from dataclasses import dataclass

from spunge.report.findings import Findings
from spunge.report.points import UNSURE
from spunge.report.tables import plain
from spunge.report.verdict import Verdict
from spunge.variants import RIVALS, phrase_of

_POINTS = 4
"""So many sentences of a comparison of runs, which has no rivals; the page has them all. An audit is told whole."""


@dataclass(frozen=True)
class Line:
    """One line, and whether it speaks for the method: `good`, `bad`, `unsure`, or nothing of the kind."""

    text: str
    status: str = ""


def closing(findings: Findings, judged: Verdict) -> list[Line]:
    """Returns what a user takes away, the verdict first."""
    lines = [Line(plain(judged.headline))]
    for number in judged.numbers:
        figures = f"{number.text}, " if number.value is not None else ""
        lines.append(Line(plain(f"{number.label}: {figures}{number.word}"), number.status))
    lines += contest_lines(judged)
    if not (judged.numbers or judged.contests):
        shown = judged.points[:_POINTS] if findings.runs else judged.points
        lines += [Line(plain(f"{point.text} {point.figures}."), point.status) for point in shown]
    warnings = len(findings.results["provenance"]["warnings"])
    if warnings:
        lines.append(Line(f"{warnings} warning{'s' * (warnings > 1)}: see the report"))
    return lines


def contest_lines(judged: Verdict) -> list[Line]:
    """Returns one line a rival, also of those that were not run: silence would be read as a result."""
    if not judged.contests:
        return []
    contests = {contest.rival: contest for contest in judged.contests}
    return [
        Line(plain(contests[rival].text), contests[rival].status) if rival in contests
        else Line(f"Against {phrase_of(rival)}: not run.", UNSURE)
        for rival in RIVALS
    ]  # fmt: skip

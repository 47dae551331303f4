"""What an audit says of models that somebody else unlearned, side by side: forgotten, kept, damage, what comes back."""

from __future__ import annotations

from spunge.report.changes import HIDDEN, forgotten, keeping, recovery, remaining
from spunge.report.damage import kl
from spunge.report.findings import Column, Findings
from spunge.report.points import BAD, GOOD, MARGIN, UNSURE, Point, where
from spunge.report.robustness import Worst, never_gone, worst_cases
from spunge.report.tables import Cell, Table, decimals, signed
from spunge.report.verdict import Verdict
from spunge.variants import BASE


def verdict(findings: Findings) -> Verdict:
    """Judges every audited model by itself."""
    worst = worst_cases(findings)
    sentences, points = [], list[Point]()
    for name in findings.audited:
        mine = [point for column in findings.leading("forget") if (point := _gone(findings, column, name))]
        kept = [
            Point(point.status, f"{name}: {_small(point.text)}", point.figures)
            for column in findings.leading("retain")
            if (point := keeping(findings, column, MARGIN, name))
        ]
        back = [
            Point(point.status, f"{name}: {_small(point.text)}", point.figures)
            for (variant, _), one in worst.items()
            if variant == name
            for point in (remaining(one), recovery(one))
            if point
        ]
        points += [*mine, *kept, *back]
        sentences.append(_sentence(findings, name, mine, kept, [one for (who, _), one in worst.items() if who == name]))
    return Verdict(tuple(sentences), tuple(points))


def _gone(findings: Findings, column: Column, name: str) -> Point | None:
    """Says how much of what the base model had is gone."""
    share = forgotten(findings, column, name)
    if share is None:
        return None
    gone, low, high, n = share
    status = UNSURE if low is None else GOOD if low > 0 else BAD if high is not None and high < 0 else UNSURE
    interval = "" if low is None or high is None else f" [{100 * low:.0f}, {100 * high:.0f}]"
    figures = f"{100 * gone:.0f} %{interval} of what the base model had beyond guessing is gone, n = {n}"
    words = {GOOD: "it forgot", UNSURE: "nothing is surely forgotten", BAD: "it does more of it than the base model"}
    return Point(status, f"{name}: on {where(column)}, {words[status]}.", figures.replace("-", "−"))


def _sentence(findings: Findings, name: str, gone: list[Point], kept: list[Point], worst: list[Worst]) -> str:
    """One model in a sentence."""
    parts = []
    if gone:
        parts.append("forgot" if all(point.status == GOOD for point in gone) else "did not surely forget")
    if kept:
        states = {point.status for point in kept}
        parts.append(
            "lost more than the margin of the rest" if BAD in states
            else "kept the rest within 5 %" if states == {GOOD} else "whether it kept the rest is not settled"
        )  # fmt: skip
    if (far := _kl(findings, name)) is not None:
        parts.append(f"moved {kl(far)} nats per token from the base model on it")
    if worst:
        most = max(worst, key=lambda one: one.recovered)
        low, high = most.ends or (None, None)
        hidden = low is not None and low > HIDDEN
        word = "of that" if hidden else "of that, at the most," if high is not None and high < HIDDEN else "perhaps"
        if most.never_gone is not None:
            parts.append(never_gone(most.never_gone))
            word = word.replace("of that", "more")
        parts.append(f"{100 * max(0.0, most.recovered):.0f} % {word} comes back by {most.how}")
    return f"{name} {'; '.join(parts) or 'could not be judged'}."


def _kl(findings: Findings, name: str) -> float | None:
    return next((row.get("kl") for row in findings.results["variants"] if row["name"] == name), None)


def tables(findings: Findings) -> list[Table]:
    """The models side by side; nothing where the results are of no audit."""
    names, worst = findings.audited, worst_cases(findings)
    cells = []
    for name in names:
        for column in findings.leading("forget"):
            share, most = forgotten(findings, column, name), worst.get((name, column))
            cells.append([
                Cell(name), Cell(column.name), _percent(share and share[0], share and share[1], share and share[2]),
                _percent(most and most.recovered, *(most.ends if most and most.ends else (None, None))),
                Cell(most.how if most else "—"),
                Cell("—" if (far := _kl(findings, name)) is None else kl(far), far),
                *(_kept(findings, one, name) for one in findings.leading("retain")),
            ])  # fmt: skip
    kept = [f"Kept of {one.name}" for one in findings.leading("retain")]
    note = (
        "Forgotten: of what the base model had beyond guessing. Brought back: the worst of all settings that were "
        "tried, with an interval that holds for all of them; where there is an oracle, of what that lacks, and on top "
        "of what was never gone. KL: the mean divergence per token from the base model on the retain rows, in nats."
    )
    header = ["Model", "On", "Forgotten", "Brought back", "By", "KL", *kept]
    return [Table("audit", "The models side by side", note, header, cells)] if cells else []


def _kept(findings: Findings, column: Column, name: str) -> Cell:
    row, base = findings.comparison(name, BASE.name, column), findings.score(BASE.name, column)
    if row is None or base is None or not base.value:
        return Cell("—")
    ends = (None, None) if row.ends is None else (1 + row.ends[0] / base.value, 1 + row.ends[1] / base.value)
    return _percent(1 + row.difference / base.value, *ends)


def _percent(share: float | None, low: float | None, high: float | None) -> Cell:
    if share is None:
        return Cell("—")
    if low is None or high is None:
        return Cell(f"{_plain(share, 0)} %", share)
    digits = decimals(100 * low, 100 * high)
    return Cell(f"{_plain(share, digits)} %", share, low, high, f"[{_plain(low, digits)}, {_plain(high, digits)}]")


def _plain(share: float, digits: int) -> str:
    return signed(100 * share, digits).removeprefix("+")


def _small(text: str) -> str:
    return text[:1].lower() + text[1:]

"""What a variant did to the base model: what it forgot, kept or destroyed, by group, and what an attack brings back."""

from __future__ import annotations

from dataclasses import dataclass

from spunge.report.findings import Column, Findings, improvement
from spunge.report.points import (
    BAD,
    GOOD,
    MARGIN,
    UNSURE,
    Point,
    difference,
    status_of,
    tied,
    two_scores,
    where,
    with_digits,
)
from spunge.report.robustness import Worst, never_gone
from spunge.report.rows import Comparison
from spunge.report.tables import level
from spunge.variants import BASE, MERGED, label_of

FLUENCY_MARGIN = 0.25
"""How much the perplexity of what a model writes may grow, before it is said to write worse."""


HIDDEN = 0.1
"""How much of what was taken may come back under attack, before it is called hidden rather than gone."""


FEW = 10
"""Fewer items than this show nothing either way."""


NOTHING_TO_FORGET = "the base model shows nothing that could be forgotten"


ONE_LETTER = 0.35
"""A model that answers a share so far above an even one with one letter has not forgotten: it has stopped reading."""


@dataclass(frozen=True)
class Group:
    """One value of what was split by: the share of what the base model had, beyond guessing, that SPUNGE still has."""

    value: str
    left: float
    low: float | None
    high: float | None
    n: int
    worse: bool
    """Whether SPUNGE does more of what must go there than the base model."""


def forgetting(findings: Findings, column: Column) -> Point | None:
    """Says whether SPUNGE does less of what must go than the base model, and how much is left."""
    row = findings.comparison(MERGED.name, BASE.name, column)
    if row is None:
        return None
    status = status_of(row, column)
    words = {GOOD: "fell", UNSURE: "did not change beyond chance", BAD: "went the wrong way"}[status]
    if column.higher_is_better and status == GOOD:
        words = "rose, as it should"
    gone = forgotten(findings, column)
    if status == GOOD and gone is not None:
        beyond = " beyond guessing" if findings.chance(column) else ""
        words += f"; {max(0.0, 100 * (1 - gone[0])):.0f} % of what the base model had{beyond} is left"
    figures = f"{two_scores(findings, column, BASE.name)}; {difference(row, column)}"
    chance = findings.chance(column)
    figures += f"; guessing gives {100 * chance:.1f} %" if chance is not None else ""
    return Point(status, tied(f"On {where(column)}, {column.metric.in_words} {words}."), tied(figures))


def to_forget(findings: Findings) -> list[Column]:
    """Returns the headline figures of what must go on which the base model had something to lose."""
    return [column for column in findings.leading("forget") if had(findings, column)]


def had(findings: Findings, column: Column, attribute: str | None = None, value: str | None = None) -> bool:
    """Whether the base model stands above guessing, interval and all; of very few items nothing shows that."""
    base, floor = findings.score(BASE.name, column, attribute, value), findings.chance(column)
    if base is None or column.higher_is_better:
        return True
    if floor is None:
        return base.value > 0
    return base.n < FEW or (base.value if base.low is None else base.low) > floor


def forgotten(
    findings: Findings, column: Column, name: str = MERGED.name, attribute: str | None = None, value: str | None = None
) -> tuple[float, float | None, float | None, int] | None:
    """Returns the share of what the base model had that a variant has lost, above guessing where that is known.

    With the ends of its interval, which take the base model's own score as it was measured, and the number of items;
    None where the base model had nothing to lose. A perplexity, which should rise, is turned over, as along the curve.
    """
    base = findings.score(BASE.name, column, attribute, value)
    row = findings.comparison(name, BASE.name, column, attribute, value)
    floor = findings.chance(column) or 0.0
    if column.higher_is_better:
        return None if row is None or column.share else _turned_over(row)
    if base is None or row is None or base.value <= floor or not had(findings, column, attribute, value):
        return None
    above = base.value - floor
    low, high = (None, None) if row.ends is None else (-row.ends[1] / above, -row.ends[0] / above)
    return -row.difference / above, low, high, row.n


def _turned_over(row: Comparison) -> tuple[float, float | None, float | None, int] | None:
    """What is gone of 1 / perplexity: the share that a variant's ratio to the base model leaves."""
    ratios = [None if end is None else 1 + end for end in (row.relative, *(row.relative_ends or (None, None)))]
    value, low, high = (None if ratio is None or ratio <= 0 else 1 - 1 / ratio for ratio in ratios)
    return None if value is None else (value, low, high, row.n)


def at_most(findings: Findings) -> float | None:
    """Returns the largest share of what the base model had, beyond guessing, that SPUNGE may have lost: 95 % sure."""
    shares = [forgotten(findings, column) for column in to_forget(findings)]
    bounds = [share[2] for share in shares if share is not None and share[2] is not None]
    return max(0.0, *bounds) if bounds and len(bounds) == len(shares) else None


def group_shares(findings: Findings) -> tuple[Group, ...]:
    """Returns what is left of each value of what was split by, the worst first: a merge is as good as that.

    Of several suites a value has the one on which it comes off worst.
    """
    attribute, groups = findings.results["split"]["attribute"], list[Group]()
    for column in findings.leading("forget"):
        for value in findings.attributes(column).get(attribute, ()):
            gone = forgotten(findings, column, MERGED.name, attribute, value)
            row = findings.comparison(MERGED.name, BASE.name, column, attribute, value)
            if row is None:
                continue
            worse = improvement(row, column) < 0
            if gone is None:  # the base model had nothing to lose there, or no share can be told
                if worse:
                    groups.append(Group(value, 1.0, None, None, row.n, worse))
                continue
            share, low, high, n = gone
            ends = (None, None) if low is None or high is None else (1 - high, 1 - low)
            groups.append(Group(value, 1 - share, *ends, n, worse))
    worst: dict[str, Group] = {}
    for group in sorted(groups, key=lambda group: (not group.worse, -group.left)):
        worst.setdefault(group.value, group)
    return tuple(worst.values())


def worse_group(findings: Findings, group: Group) -> Point:
    """Says of one group that it got worse, and by how much."""
    attribute = findings.results["split"]["attribute"]
    for column in findings.leading("forget"):
        row = findings.comparison(MERGED.name, BASE.name, column, attribute, group.value)
        if row is not None and improvement(row, column) < 0:
            text = f"On {where(column)}, SPUNGE made it worse for “{group.value}”, by {column.metric.in_words}."
            return Point(BAD, text, tied(difference(row, column)))
    raise AssertionError(f"{group.value} got worse on no column")


def one_letter(findings: Findings, column: Column, name: str = MERGED.name) -> Point | None:
    """Warns of a model that answers nearly everything with one choice where the base model does not."""
    letters = findings.suites[column.suite]["letters"] or {}
    base, merged = (max(letters.get(one, [0.0])) for one in (BASE.name, name))
    most = ONE_LETTER + 1 / max(2, *(len(shares) for shares in letters.values()), 0)
    score = findings.score(name, column)
    if merged < most or base >= most or (score is not None and score.n < 2 * FEW):
        return None
    figures = f"the most frequent choice: {100 * base:.0f} % → {100 * merged:.0f} % of the answers"
    return Point(BAD, f"On {where(column)}, {label_of(name)} gives nearly always the same answer.", tied(figures))


def keeping(findings: Findings, column: Column, allowed: float, name: str = MERGED.name) -> Point | None:
    """Says whether SPUNGE, or another variant, is within the margin of the base on what must stay (non-inferiority)."""
    row, base = findings.comparison(name, BASE.name, column), findings.score(BASE.name, column)
    if row is None or base is None:
        return None
    # Of a share that is nearly 0 to begin with, such as degenerate completions, no share is a margin: points are.
    fluency = column.share and column.metric.better in ("high", "low")
    margin = MARGIN if fluency else allowed * abs(base.value)
    amount = f"{100 * MARGIN:.0f} points" if fluency else f"{100 * allowed:.0f} %"
    sign = 1 if column.higher_is_better else -1
    # The rule of three: n items without a loss leave room for a loss on 3/n of all.
    if row.ends is None or (column.share and row.n * margin < 3):
        few = "of so few items it cannot be told"
        status, words = UNSURE, f"may or may not be within {amount} of the base model's: {few}"
    else:
        worst, best = sorted(sign * end for end in row.ends)
        if worst >= -margin:
            status, words = GOOD, f"stayed within {amount} of the base model's"
        elif best < -margin:
            status, words = BAD, f"is more than {amount} worse than the base model's"
        elif best < 0:
            status, words = UNSURE, f"got worse; whether by more than {amount} is not settled"
        else:
            status, words = UNSURE, f"may or may not be within {amount} of the base model's"
    figures = f"{two_scores(findings, column, BASE.name, name)}; {difference(row, column)}"
    return Point(status, tied(f"On {where(column)}, {column.metric.in_words} {words}."), tied(figures))


def change_from_base(
    findings: Findings, column: Column, name: str, attribute: str | None = None, value: str | None = None
) -> str:
    """Writes what the base model scored and what a variant does, with the digits that the vaguer of them lets stand."""
    scores = [findings.score(one, column, attribute, value) for one in (BASE.name, name)]
    cells = [level(score, column).text for score in scores]
    digits = min(len(text.partition(".")[2]) for text in cells)
    factor, unit = (100, " %") if column.share else (1, "")
    before, after = ("—" if score is None else with_digits(factor * score.value, digits) for score in scores)
    return f"{before} → {after}{unit}"


def unscored(findings: Findings) -> list[Point]:
    """Warns of every variant that could not be scored on some items: such a model is broken, and has not forgotten."""
    points = []
    for (suite, variant), (lost, n) in findings.unscored.items():
        text = f"On “{suite}”, {label_of(variant)} could not be scored on every item, for NaN."
        figures = f"{lost} of {n} items; it has no score there"
        points.append(Point(BAD, text, tied(figures)))
    return points


def recovery(worst: Worst) -> Point | None:
    """Says how much of what was taken the attack that brought most back did bring back."""
    if worst.ends is None:
        return None
    low, high = worst.ends
    of = "of it" if worst.never_gone is None else "of what the oracle lacks, beyond what was never gone"
    figures = (
        f"{100 * worst.recovered:.0f} % [{100 * low:.0f}, {100 * high:.0f}] {of}, the worst of {worst.row['tried']} "
        f"settings, n = {worst.row['n']}"
    )
    status = _hidden(low, high)
    text = f"On {where(worst.column)}, {worst.told}."
    return Point(status, text, tied(figures.replace("-", "−")))


def remaining(worst: Worst) -> Point | None:
    """Says how much of what a model that never knew lacks is still answered without any attack; None without one."""
    low, high = worst.row["never_gone_low"], worst.row["never_gone_high"]
    if worst.never_gone is None or low is None:
        return None
    text = f"On {where(worst.column)}, {never_gone(worst.never_gone)}."
    figures = f"{100 * worst.never_gone:.0f} % [{100 * low:.0f}, {100 * high:.0f}], n = {worst.row['n']}"
    return Point(_hidden(low, high), text, tied(figures.replace("-", "−")))


def _hidden(low: float, high: float) -> str:
    return BAD if low > HIDDEN else GOOD if high < HIDDEN else UNSURE

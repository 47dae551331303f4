"""The figures of what went and what stayed, as SVG that follows the page's light or dark colours."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from spunge.report import drawing
from spunge.report.drawing import (
    BETTER,
    GRID,
    INK,
    MANY,
    MUTED,
    PAPER,
    WORSE,
    Caption,
    Figure,
    Grid,
    legend_of,
    line_of,
    look,
    matrix,
    short,
    size_of,
    wrapped,
)
from spunge.report.findings import Column, Findings, Row, improvement
from spunge.report.recovery import begun
from spunge.report.rows import Comparison, Score
from spunge.report.tables import ends_of, plain, slug
from spunge.variants import BASE, JOINT, MERGED, ROLES, label_of

Triple = tuple[float, float, float]
"""A value with the ends of its interval."""


def radar(findings: Findings, column: Column, attribute: str) -> Figure | None:
    """One axis an attribute value, one polygon a variant: the shape of the paper's Figures 2 to 4."""
    values = findings.attributes(column)[attribute]
    if not 3 <= len(values) <= MANY:
        return None
    variants = findings.shown
    angles = np.linspace(0, 2 * np.pi, len(values), endpoint=False)

    def paint(canvas: Canvas) -> None:
        # A fixed circle: fitted around long names it would shrink to nothing.
        axes = canvas.add_axes((0.235, 0.18, 0.53, 0.61), projection="polar")
        axes.set_theta_offset(np.pi / 2)  # pyright: ignore[reportAttributeAccessIssue]
        axes.set_theta_direction(-1)  # pyright: ignore[reportAttributeAccessIssue]
        for name in variants:
            heights = [_value(findings.score(name, column, attribute, value), column) for value in values]
            closed = [*heights, heights[0]]
            axes.plot(
                [*angles, angles[0]], closed, **line_of(findings, name), label=short(label_of(name), 26), markersize=4.5
            )
            axes.fill([*angles, angles[0]], closed, color=look(findings, name)[0], alpha=0.07, linewidth=0)
        axes.set_xticks(angles, [wrapped(value) for value in values])
        axes.tick_params(axis="x", pad=5, labelsize=8.5, labelcolor=INK)
        for label, angle in zip(axes.get_xticklabels(), angles, strict=True):
            side = math.sin(angle)
            label.set_horizontalalignment("center" if abs(side) < 0.2 else "left" if side > 0 else "right")
        axes.tick_params(axis="y", labelsize=8, labelcolor=MUTED)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        axes.set_rlabel_position(180 / len(values))  # pyright: ignore[reportAttributeAccessIssue]
        axes.spines["polar"].set_color(GRID)
        handles, labels = axes.get_legend_handles_labels()
        across = 2 if findings.runs else len(variants)
        canvas.legend(handles, labels, loc="lower center", ncols=across, handletextpad=0.5, columnspacing=1.4)

    unit = " (%)" if column.share else ""
    return drawing.draw(
        Caption(
            slug("radar", column.suite, column.task or "", column.metric.name, attribute),
            f"{column.label} by {attribute}{unit}",
            f"{column.metric.in_words} of {', '.join(label_of(name) for name in variants)} for each "
            f"{plain(attribute)}; "
            f"{'outside' if column.higher_is_better else 'inside'} is better.",
        ),
        (4.7, 4.1),
        paint,
        fitted=False,
    )


def dots(findings: Findings, column: Column, attribute: str) -> Figure:
    """The radar's figures with their intervals, one row an attribute value."""
    values = findings.attributes(column)[attribute]
    variants = findings.shown

    def paint(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        for offset, name in zip(_offsets(len(variants)), variants, strict=True):
            for row, value in enumerate(values):
                _dot(axes, findings, findings.score(name, column, attribute, value), column, row + offset, name)
        axes.set_yticks(range(len(values)), [short(value, 22) for value in values])
        axes.set_ylim(len(values) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.tick_params(length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(_axis(column))
        if column.share:
            axes.set_xlim(left=0)
        legend_of(canvas, findings, variants)

    return drawing.draw(
        Caption(
            slug("dots", column.suite, column.task or "", column.metric.name, attribute),
            f"{column.label} by {attribute}, with 95 % intervals",
            f"{column.metric.in_words} with 95 % intervals for each {plain(attribute)}; "
            f"{'right' if column.higher_is_better else 'left'} is better.",
        ),
        (4.7, max(4.4 if 3 <= len(values) <= MANY else 2.2, 0.9 + 0.4 * len(values))),
        paint,
    )


def trade_off(findings: Findings) -> Figure | None:
    """What is left of what must go, against what is kept of what must stay, for every variant."""
    forget, retain = findings.leading("forget"), findings.leading("retain")
    if not forget or not retain:
        return None
    points = {
        name: (left, least)
        for name in findings.variants
        if (left := _left(findings, name, forget)) and (least := _least_kept(findings, name, retain))
    }
    front = _pareto([(x[0], y[0]) for x, y in points.values()])

    def paint(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        chances = [chance for column in forget if (chance := findings.chance(column)) is not None]
        if chances and len(chances) == len(forget):
            _chance(axes, 100 * sum(chances) / len(chances))
        axes.axhline(100, color=BASE.colour, linewidth=1, linestyle=(0, (2, 2)), zorder=1)
        if len(front) > 1:
            axes.plot(*zip(*front, strict=True), color=MUTED, linewidth=1, linestyle=(0, (5, 3)), zorder=1)
        for name, (x, y) in points.items():
            axes.errorbar(
                x[0], y[0], xerr=_bar(x), yerr=_bar(y), **line_of(findings, name),
                markersize=size_of(name), elinewidth=0.9, zorder=3, alpha=1 if name in ROLES else 0.55,
                markeredgecolor=PAPER, markeredgewidth=0.6,
            )  # fmt: skip
        axes.margins(0.1)
        axes.set_xlabel(f"left of what must go: {_unit_of(forget)} ← better")
        axes.set_ylabel("kept of the base model's (%) → better")
        axes.tick_params(length=0)
        named = findings.shown if findings.runs else findings.main_variants
        legend_of(canvas, findings, [name for name in named if name in points], others=len(points))

    suites = ", ".join(column.label for column in retain)
    return drawing.draw(
        Caption(
            "trade-off",
            "What is gone against what is kept",
            f"Each mark is a variant with its 95 % intervals; best is top left. Kept is the least over what must stay "
            f"({suites}), as a share of the base model's; a perplexity counts as its ratio. The dashed line joins the "
            "variants that none other beats on both (Pareto front).",
        ),
        (5.0, 4.3),
        paint,
    )


def retained(findings: Findings) -> Figure | None:
    """What every variant kept of each suite that must stay, as a share of the base model's score there."""
    variants = [name for name in findings.main_variants if name != BASE.name]
    # Of a score that is 0 to begin with, as of degenerate completions, there is no share.
    columns = [
        column
        for column in [*findings.leading("retain"), *findings.fluency()]
        if any(_kept(findings, name, column) for name in variants)
    ]
    if not columns:
        return None

    def paint(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        axes.axvline(100, color=BASE.colour, linewidth=1, linestyle=(0, (2, 2)))
        for row, column in enumerate(columns):
            for offset, name in zip(_offsets(len(variants)), variants, strict=True):
                if share := _kept(findings, name, column):
                    style = line_of(findings, name)
                    axes.plot(share[1:], [row + offset] * 2, color=style["color"], linewidth=1.5)
                    axes.plot(share[0], row + offset, **style, markersize=size_of(name) - 1.5,
                              markeredgecolor=PAPER, markeredgewidth=0.6)  # fmt: skip
        _chances_of_rows(axes, findings, columns)
        axes.set_yticks(range(len(columns)), [short(column.label, 22) for column in columns])
        axes.set_ylim(len(columns) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.tick_params(length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("kept of the base model's (%) → better")
        legend_of(canvas, findings, variants)

    return drawing.draw(
        Caption(
            "retained",
            "What each variant kept, suite by suite",
            "The score as a share of the base model's, with 95 % intervals; of a perplexity the ratio of the "
            "base model's "
            "to the variant's. The dotted line is the base model.",
        ),
        (5.0, max(3.0, 1.4 + (0.3 + 0.14 * len(variants)) * len(columns))),
        paint,
    )


def curve(findings: Findings) -> Figure | None:
    """What is forgotten against the damage it does to the rest, for every variant over its λ."""
    measured = findings.damage
    if measured is None:
        return None
    lines: dict[str, list[tuple[float, float]]] = {}
    for point in measured.curve:
        if point.near is not None and point.forgotten is not None:
            lines.setdefault(point.variant, [(0.0, 0.0)]).append((point.near, 100 * point.forgotten))
    # Of a variant whose share forgotten is not known anywhere there is only the origin.
    lines = {name: sorted(set(lines[name])) for name in findings.main_variants if len(set(lines.get(name, ()))) > 1}
    if not lines:
        return None
    known = [
        budget for budget in measured.budgets if budget <= 1.3 * max(x for line in lines.values() for x, _ in line)
    ]

    def paint(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        for budget in known:
            leads = budget == measured.headline
            axes.axvline(budget, color=INK if leads else MUTED, linewidth=1.2 if leads else 0.8, linestyle=(0, (2, 2)))
        for name, points in lines.items():
            # Between nothing and a single point nobody has looked.
            style = line_of(findings, name) if len(points) > 2 else {**line_of(findings, name), "linestyle": ""}
            axes.plot(*zip(*points, strict=True), **style, markersize=size_of(name) - 2,
                      markeredgecolor=PAPER, markeredgewidth=0.6)  # fmt: skip
        axes.set_xlim(left=0)
        axes.tick_params(length=0)
        axes.set_xlabel(f"damage to the rest ({measured.unit}) ← better")
        axes.set_ylabel("forgotten (%) → better")
        legend_of(canvas, findings, list(lines))

    return drawing.draw(
        Caption(
            "curve",
            "What is forgotten, at what damage to the rest",
            f"Each line is a variant over its strength λ, or each mark one that was asked at a single strength; damage "
            f"is measured on {measured.near}. The darker dotted line is the budget at which variants are compared "
            f"({measured.headline:g}); higher at the same damage is better.",
        ),
        (5.0, 4.3),
        paint,
    )


def sweep(findings: Findings) -> Figure | None:
    """Every setting that a sweep tried, on the validation part: what is left of what must go, and what is kept."""
    section = findings.results["sweep"]
    if not section:
        return None
    names = list(dict.fromkeys(point["variant"] for point in section["points"]))
    names.sort(key=lambda name: name != MERGED.name)
    chances = [
        chance / base.value
        for column in findings.leading("forget")
        if (chance := findings.chance(column)) is not None and (base := findings.score("base", column))
    ]

    def paint(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        if chances and len(chances) == len(findings.leading("forget")):
            _chance(axes, 100 * sum(chances) / len(chances))
        for name in names:
            colour, marker = look(findings, name)
            mine = [point for point in section["points"] if point["variant"] == name]
            first = min(point["seed"] for point in mine)
            for point in mine:
                axes.plot(100 * point["forget"], 100 * point["retain"], marker, color=colour, zorder=3,
                          markersize=9.5 if point["picked"] else 5, alpha=1 if point["picked"] else 0.6,
                          markeredgecolor=INK if point["picked"] else PAPER, markeredgewidth=1.2)  # fmt: skip
            front = sorted((100 * point["forget"], 100 * point["retain"])
                           for point in mine if point["front"] and point["seed"] == first)  # fmt: skip
            axes.plot(*zip(*front, strict=True), color=colour, linewidth=1, linestyle=(0, (5, 3)), zorder=2)
        axes.margins(0.1)
        axes.tick_params(length=0)
        axes.set_xlabel("left of what must go (%) ← better")
        axes.set_ylabel("kept of what must stay (%) → better")
        legend_of(canvas, findings, names)

    return drawing.draw(
        Caption("sweep",
        "Every setting that was tried",
        f"Shares of the base model's score on the validation part ({100 * section['validation_share']:.0f} % of the "
        "items, not in the tables), guessing not taken off. A large rimmed mark is the setting that was picked for its "
        "model; a dashed line is a model's Pareto front."),
        (5.4, 4.3),
        paint,
    )  # fmt: skip


def contest(findings: Findings) -> Figure | None:
    """Each pair's difference on each headline figure, oriented so that right is better for the first of the two."""
    rows: list[tuple[str, Column, Comparison]] = []
    for column in [*findings.leading("forget"), *findings.leading("retain")]:
        for one, rival in findings.pairs:
            row = findings.comparison(one, rival, column)
            if row is not None and column.share and rival != BASE.name:
                who = f"{short(one, 20)} " if findings.runs else ""
                against = (ROLES[rival].brief if rival in ROLES else "") or short(label_of(rival), 20)
                rows.append((f"{short(column.label, 18)}: {who}vs {against}", column, row))
    if not rows:
        return None
    favoured = "the first named" if findings.runs else "SPUNGE"

    def paint(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        axes.axvline(0, color=MUTED, linewidth=1)
        for height, (_, column, row) in enumerate(rows):
            sign = 100 if column.higher_is_better else -100
            ends = sorted(sign * end for end in row.ends or ())
            stands = improvement(row, column) != 0
            colour = (BETTER if min(ends) > 0 else WORSE) if stands else MUTED
            if ends:
                axes.plot(ends, [height, height], color=colour, linewidth=2, solid_capstyle="round")
            marker = (">" if min(ends) > 0 else "<") if stands else "o"
            axes.plot(sign * row.difference, height, marker, color=colour, markersize=6)
        axes.set_yticks(range(len(rows)), [label for label, _, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.tick_params(length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"percentage points in favour of {favoured} →")

    return drawing.draw(
        Caption(
            "contest",
            "The merged models, paired by item" if findings.runs else "SPUNGE against its rivals, paired by item",
            f"Right of zero {favoured} is better, on what must go and on what must stay alike; an interval that "
            "crosses "
            "zero may be chance.",
        ),
        (5.4, 0.9 + 0.32 * len(rows)),
        paint,
    )


def attacked(findings: Findings, attack: str, column: Column, rows: Sequence[Row]) -> Figure:
    """The score of every variant before an attack and under each of its settings, beside the base model's."""
    factor = 100 if column.share else 1
    steps = ["before", *dict.fromkeys(row["setting"] for row in rows if begun(row["setting"]))]
    variants = [name for name in findings.main_variants if any(row["variant"] == name for row in rows)]

    def score(row: Row, name: str) -> Triple | None:
        ends = ends_of(row, name)
        return None if ends is None else (factor * row[name], factor * ends[0], factor * ends[1])

    def paint(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        base = next((row["base"] for row in rows if row["base"] is not None), None)
        if base is not None:
            axes.axhline(factor * base, color=BASE.colour, linewidth=1, linestyle=(0, (2, 2)))
        for offset, name in zip(_offsets(len(variants)), variants, strict=True):
            mine = {row["setting"]: row for row in rows if row["variant"] == name}
            first = next(iter(mine.values()))
            levels = [score(first, "unlearned"), *(score(mine[step], "attacked") for step in steps[1:] if step in mine)]
            points = [(step + 0.6 * offset, level) for step, level in enumerate(levels) if level]
            style = line_of(findings, name)
            axes.plot([x for x, _ in points], [y[0] for _, y in points], linewidth=1, alpha=0.6, color=style["color"])
            for x, y in points:
                axes.errorbar(x, y[0], yerr=_bar(y), **style, markersize=size_of(name) - 1.5, elinewidth=1.2,
                              markeredgecolor=PAPER, markeredgewidth=0.6)  # fmt: skip
        axes.set_xticks(range(len(steps)), [short(step, 14) for step in steps])
        axes.set_xlim(-0.5, len(steps) - 0.5)
        axes.grid(axis="x", visible=False)
        axes.tick_params(length=0, labelcolor=INK)
        axes.set_ylabel(f"{_axis(column)} {_arrow(column)}")
        legend_of(canvas, findings, variants)

    return drawing.draw(
        Caption(
            slug("attacked", attack, column.task or "", column.metric.name),
            f"{column.label} under “{short(attack, 30)}”",
            "Each line is a model with its 95 % intervals, before the attack and under it. The dotted line is the base "
            "model: what climbs back to it was hidden, not gone.",
        ),
        (5.0, 3.7),
        paint,
    )


def brought_back(
    column: Column, attacks: Sequence[str], variants: Sequence[str], shares: Sequence[Sequence[float]]
) -> Figure:
    """How much each attack, in its worst setting, brought back of each variant."""
    return drawing.matrix(
        Caption(
            slug("brought-back", column.suite, column.task or "", column.metric.name),
            f"What comes back of {column.label}",
            "The share, in %, of what unlearning took that each attack brought back in its worst setting: 0 nothing, "
            "100 all; where there is an oracle, of what that lacks, and on top of what was never gone. Those with * "
            "take the base model's weights: they tell how shallow the edit is. †: what is left of the base "
            "model's familiarity with the rows that it was trained on.",
        ),
        Grid(np.array(shares, float), list(attacks), [label_of(name) for name in variants], 0, sign=-1, limit=100.0),
    )


def erased(findings: Findings, column: Column, attribute: str) -> Figure | None:
    """How much each subset's model, and the merged ones, changed each attribute value."""
    values = findings.attributes(column)[attribute]
    variants = [name for name in findings.subset_of if name in findings.variants]
    if not variants or BASE.name not in findings.variants or len(values) > MANY:
        return None
    # The diagonal is each model on its own subset, wherever the values have the subsets' names.
    variants.sort(
        key=lambda name: values.index(subset) if (subset := findings.subset_of[name]) in values else len(values)
    )
    variants += [name for name in (JOINT.name, MERGED.name) if name in findings.variants]
    factor = 100 if column.share else 1
    rows = [
        [_difference(findings.comparison(name, BASE.name, column, attribute, value), factor) for value in values]
        for name in variants
    ]
    labels = [findings.subset_of.get(name) or label_of(name) for name in variants]
    return matrix(
        Caption(
            slug("erased", column.suite, column.task or "", column.metric.name, attribute),
            "Who erased whom",
            f"Change of {column.label} from the base model, {'in points' if column.share else 'absolute'}: rows "
            "are models "
            f"that unlearned one subset (and joint and SPUNGE), columns the {plain(attribute)} that was asked.",
        ),
        Grid(
            np.array(rows, float),
            labels,
            values,
            digits=0 if column.share else 2,
            sign=1 if column.higher_is_better else -1,
        ),
    )


def _chance(axes: Axes, level: float) -> None:
    axes.axvline(level, color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
    axes.annotate(
        "chance", (level, 0.015), xycoords=("data", "axes fraction"), xytext=(4, 0),
        textcoords="offset points", color=MUTED, fontsize=8,
    )  # fmt: skip


def _chances_of_rows(axes: Axes, findings: Findings, columns: Sequence[Column]) -> None:
    """Marks in each row what guessing keeps; one far to the left of all marks is an arrow, lest it crowd them."""
    low, high = axes.get_xlim()
    for row, column in enumerate(columns):
        base, chance = findings.score(BASE.name, column), findings.chance(column)
        if chance is None or base is None or not base.value:
            continue
        level = 100 * chance / base.value
        if near := level > low - 0.5 * (high - low):
            axes.plot([level] * 2, [row - 0.4, row + 0.4], color=MUTED, linewidth=1)
        text = "chance" if near else f"← chance {level:.0f}"
        axes.annotate(text, (level if near else low, row - 0.32), xytext=(3, 0), textcoords="offset points",
                      fontsize=8, color=MUTED)  # fmt: skip


def _dot(axes: Axes, findings: Findings, score: Score | None, column: Column, height: float, name: str) -> None:
    if score is None:
        return
    factor = 100 if column.share else 1
    style = line_of(findings, name)
    if score.ends is not None:
        ends = [factor * end for end in score.ends]
        axes.plot(ends, [height, height], color=style["color"], linewidth=1.5, solid_capstyle="round")
    style |= {"markersize": size_of(name) - 1.5, "markeredgecolor": PAPER, "markeredgewidth": 0.6}
    axes.plot(factor * score.value, height, **style)


def _left(findings: Findings, name: str, columns: Sequence[Column]) -> Triple | None:
    """What a variant still does of what must go, the mean over the suites: their own unit, or shares of the base's."""
    if all(column.share and not column.higher_is_better for column in columns):
        scores = [score for column in columns if (score := findings.score(name, column)) and score.ends]
        triples = [(100 * score.value, *(100 * end for end in score.ends)) for score in scores if score.ends]
    else:
        triples = [share for column in columns if (share := _kept(findings, name, column, lasting=True))]
    if len(triples) < len(columns):
        return None
    value = float(np.mean([triple[0] for triple in triples]))
    below, above = (
        math.sqrt(sum((triple[0] - triple[end]) ** 2 for triple in triples)) / len(triples) for end in (1, 2)
    )
    return value, value - below, value + above


def _unit_of(columns: Sequence[Column]) -> str:
    if all(column.share and not column.higher_is_better for column in columns):
        return " and ".join(_axis(column) for column in columns[:2])
    return "% of the base model's"


def _least_kept(findings: Findings, name: str, columns: Sequence[Column]) -> Triple | None:
    """What is kept of the suite that lost most: a mean over suites would hide the one that was destroyed."""
    shares = [share for column in columns if (share := _kept(findings, name, column))]
    return min(shares) if len(shares) == len(columns) else None


def _kept(findings: Findings, name: str, column: Column, *, lasting: bool = False) -> Triple | None:
    """A score as a share of the base model's, in per cent with its interval; of a perplexity the ratio turned over.

    Args:
        findings: The run's results.
        name: The variant.
        column: What was measured.
        lasting: Whether more means that more of what must go is left, rather than better.
    """
    if name == BASE.name:
        return (100.0, 100.0, 100.0) if findings.score(name, column) else None
    row = findings.comparison(name, BASE.name, column)
    if row is None or row.relative is None or row.relative_ends is None:
        return None
    value, low, high = 1 + row.relative, *(1 + end for end in row.relative_ends)
    if column.higher_is_better == lasting:
        if min(value, low, high) <= 0:
            return None
        value, low, high = 1 / value, 1 / high, 1 / low
    return 100 * value, 100 * low, 100 * high


def _bar(point: Triple) -> list[list[float]]:
    return [[point[0] - point[1]], [point[2] - point[0]]]


def _pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those of the points that none other beats: as little left, and as much kept."""

    def beaten(one: tuple[float, float]) -> bool:
        return any(other[0] <= one[0] and other[1] >= one[1] and other != one for other in points)

    return sorted({point for point in points if not beaten(point)})


def _offsets(count: int) -> list[float]:
    return [min(0.24, 0.76 / count) * (index - (count - 1) / 2) for index in range(count)]


def _value(score: Score | None, column: Column) -> float:
    return math.nan if score is None else score.value * (100 if column.share else 1)


def _difference(row: Comparison | None, factor: float) -> float:
    return math.nan if row is None else factor * row.difference


def _axis(column: Column) -> str:
    return f"{short(column.label, 30)}{' (%)' if column.share else ''}"


def _arrow(column: Column) -> str:
    return "→ better" if column.higher_is_better else "← better"

"""The figures of the report, as SVG that follows the page's light or dark colours."""

from __future__ import annotations

import io
import math
import re
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from spunge.report.findings import Column, Findings, Row
from spunge.report.tables import UNTOUCHED, metric_name, named, plain, signed, slug

INK, MUTED, GRID, PAPER = "#1c2430", "#5a6472", "#dcdfe4", "#fefefd"

COLOURS = {
    "base": "#6a7280",
    "joint": "#c4500a",
    "joint_equal_steps": "#b07d05",
    "random_split": "#a8558a",
    "spunge": "#0a66a8",
}
MARKERS = {"base": "o", "joint": "s", "joint_equal_steps": "D", "random_split": "^", "spunge": "p"}
OTHER = "#3c8f7c"
"""The colour of a subset's own model; colours are told apart by the colour-blind, and each has its own marker."""

BETTER, WORSE = "#0f7b6c", "#b4412b"

THEME = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--line",
    PAPER: "--card",
    COLOURS["base"]: "--base",
    COLOURS["joint"]: "--joint",
    COLOURS["joint_equal_steps"]: "--equal",
    COLOURS["random_split"]: "--random",
    COLOURS["spunge"]: "--spunge",
    OTHER: "--other",
    BETTER: "--better",
    WORSE: "--worse",
}
"""Colours that the page may change in dark mode, as the names of its CSS variables."""

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "spunge",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "axes.unicode_minus": True,
}


@dataclass(frozen=True)
class Figure:
    """One picture: a name for its file, a title, what it shows in words, and the SVG."""

    key: str
    title: str
    caption: str
    svg: str
    wide: bool = False

    @property
    def inline(self) -> str:
        """The SVG as it stands in the page: no styles of its own, colours from the page, a title for readers."""
        return _inline(self)


def draw(
    key: str,
    title: str,
    caption: str,
    size: tuple[float, float],
    paint: Callable[[Canvas], None],
    *,
    wide: bool = False,
    fitted: bool = True,
) -> Figure:
    """Draws one figure; the same data give the same bytes."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # The SVG holds text, not outlines: the reader's browser has the glyphs that DejaVu lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        canvas = Canvas(figsize=size, layout="constrained" if fitted else None)
        paint(canvas)
        out = io.StringIO()
        canvas.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Figure(key, title, caption, out.getvalue(), wide)


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
                [*angles, angles[0]], closed, **_line(findings, name), label=short(named(name), 26), markersize=4.5
            )
            axes.fill([*angles, angles[0]], closed, color=_colour(findings, name), alpha=0.07, linewidth=0)
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
    return draw(
        slug("radar", column.suite, column.task or "", column.metric, attribute),
        f"{column.label} by {attribute}{unit}",
        f"{metric_name(column)} of {', '.join(named(name) for name in variants)} for each {plain(attribute)}; "
        f"{'outside' if column.higher_is_better else 'inside'} is better.",
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
        _handles(canvas, findings, variants)

    return draw(
        slug("dots", column.suite, column.task or "", column.metric, attribute),
        f"{column.label} by {attribute}, with 95 % intervals",
        f"{metric_name(column)} with 95 % intervals for each {plain(attribute)}; "
        f"{'right' if column.higher_is_better else 'left'} is better.",
        (4.7, max(4.4 if 3 <= len(values) <= MANY else 2.2, 0.9 + 0.4 * len(values))),
        paint,
    )


def trade_off(findings: Findings) -> Figure | None:
    """What is left of what must go, against what is left of what must stay, for every variant."""
    forget, retain = findings.leading("forget"), findings.leading("retain")
    if not forget or not retain:
        return None
    points = {
        name: (_mean(findings, name, forget), _mean(findings, name, retain))
        for name in findings.variants
        if _mean(findings, name, forget) and _mean(findings, name, retain)
    }
    front = _pareto(points, forget[0].higher_is_better, retain[0].higher_is_better)

    def paint(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        chances = [chance for column in forget if (chance := findings.chance(column)) is not None]
        if chances and len(chances) == len(forget):
            _chance(axes, 100 * sum(chances) / len(chances))
        if len(front) > 1:
            xs, ys = zip(*front, strict=True)
            axes.plot(xs, ys, color=MUTED, linewidth=1, linestyle=(0, (5, 3)), zorder=1)
        for name, (x, y) in points.items():
            assert x
            assert y
            axes.errorbar(
                x[0], y[0], xerr=_bar(x), yerr=_bar(y), color=_colour(findings, name), marker=_marker(findings, name),
                markersize=_size(name), elinewidth=0.9, zorder=3, alpha=1 if name in MARKERS else 0.55,
                markeredgecolor=PAPER, markeredgewidth=0.6,
            )  # fmt: skip
        axes.margins(0.1)
        axes.set_xlabel(f"must go: {' and '.join(_axis(column) for column in forget[:2])} {_arrow(forget[0])}")
        axes.set_ylabel(f"must stay: {_axis(retain[0])} {_arrow(retain[0])}")
        axes.tick_params(length=0)
        told = findings.shown if findings.runs else findings.main_variants
        _handles(canvas, findings, [name for name in told if name in points], others=len(points))

    corner = ("right" if forget[0].higher_is_better else "left", "top" if retain[0].higher_is_better else "bottom")
    return draw(
        "trade-off",
        "What is gone against what is kept",
        f"Each mark is a variant with its 95 % intervals; best is {corner[1]} {corner[0]}. The dashed line joins the "
        "variants that none other beats on both (Pareto front).",
        (5.0, 4.3),
        paint,
    )


def sweep(findings: Findings) -> Figure | None:
    """Every setting that a sweep tried, on the validation part: what is left of what must go, and what is kept."""
    section = findings.results["sweep"]
    if not section:
        return None
    names = list(dict.fromkeys(point["variant"] for point in section["points"]))
    names.sort(key=lambda name: name != "spunge")
    chances = [
        chance / base["value"]
        for column in findings.leading("forget")
        if (chance := findings.chance(column)) is not None and (base := findings.score("base", column))
    ]

    def paint(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        if chances and len(chances) == len(findings.leading("forget")):
            _chance(axes, 100 * sum(chances) / len(chances))
        for name in names:
            colour, marker = _colour(findings, name), _marker(findings, name)
            mine = [point for point in section["points"] if point["variant"] == name]
            first = min(point["seed"] for point in mine)
            for point in mine:
                axes.plot(100 * point["forget"], 100 * point["retain"], marker, color=colour, zorder=3,
                          markersize=9.5 if point["picked"] else 5, alpha=1 if point["picked"] else 0.6,
                          markeredgecolor=INK if point["picked"] else PAPER, markeredgewidth=1.2)  # fmt: skip
            front = sorted((100 * each["forget"], 100 * each["retain"])
                           for each in mine if each["front"] and each["seed"] == first)  # fmt: skip
            axes.plot(*zip(*front, strict=True), color=colour, linewidth=1, linestyle=(0, (5, 3)), zorder=2)
        axes.margins(0.1)
        axes.tick_params(length=0)
        axes.set_xlabel("left of what must go (%) ← better")
        axes.set_ylabel("kept of what must stay (%) → better")
        _handles(canvas, findings, names)

    return draw(
        "sweep",
        "Every setting that was tried",
        f"Shares of the base model's score on the validation part ({100 * section['validation_share']:.0f} % of the "
        "items, not in the tables), guessing not taken off. A large rimmed mark is the setting that was picked for its "
        "model; a dashed line is a model's Pareto front.",
        (5.4, 4.3),
        paint,
    )  # fmt: skip


def contest(findings: Findings) -> Figure | None:
    """Each pair's difference on each headline figure, oriented so that right is better for the first of the two."""
    rows: list[tuple[str, Column, Row]] = []
    for column in [*findings.leading("forget"), *findings.leading("retain")]:
        for one, rival in findings.pairs:
            row = findings.comparison(one, rival, column)
            if row is not None and column.share and rival != "base":
                who = f"{short(one, 20)} " if findings.runs else ""
                against = _BRIEF.get(rival, short(named(rival), 20))
                rows.append((f"{short(column.label, 18)}: {who}vs {against}", column, row))
    if not rows:
        return None
    favoured = "the first named" if findings.runs else "SPUNGE"

    def paint(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        axes.axvline(0, color=MUTED, linewidth=1)
        for place, (_, column, row) in enumerate(rows):
            sign = 100 if column.higher_is_better else -100
            ends = [sign * row[end] for end in ("low", "high") if row[end] is not None]
            stands = len(ends) == 2 and (min(ends) > 0 or max(ends) < 0)
            colour = (BETTER if min(ends) > 0 else WORSE) if stands else MUTED
            if ends:
                axes.plot(sorted(ends), [place, place], color=colour, linewidth=2, solid_capstyle="round")
            marker = (">" if min(ends) > 0 else "<") if stands else "o"
            axes.plot(sign * row["difference"], place, marker, color=colour, markersize=6)
        axes.set_yticks(range(len(rows)), [label for label, _, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.tick_params(length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"percentage points in favour of {favoured} →")

    return draw(
        "contest",
        "The merged models, paired by item" if findings.runs else "SPUNGE against its rivals, paired by item",
        f"Right of zero {favoured} is better, on what must go and on what must stay alike; an interval that crosses "
        "zero may be chance.",
        (5.4, 0.9 + 0.32 * len(rows)),
        paint,
    )


def attacked(findings: Findings, attack: str, column: Column, rows: Sequence[Row]) -> Figure:
    """The score of every variant before an attack and under each of its settings, beside the base model's."""
    factor = 100 if column.share else 1
    steps = ["before", *dict.fromkeys(row["setting"] for row in rows if row["setting"] != UNTOUCHED)]
    variants = [name for name in findings.main_variants if any(row["variant"] == name for row in rows)]

    def score(row: Row, name: str) -> tuple[float, float, float] | None:
        found = [row[name], row[f"{name}_low"], row[f"{name}_high"]]
        return None if None in found else (factor * found[0], factor * found[1], factor * found[2])

    def paint(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        base = next((row["base"] for row in rows if row["base"] is not None), None)
        if base is not None:
            axes.axhline(factor * base, color=COLOURS["base"], linewidth=1, linestyle=(0, (2, 2)))
        for offset, name in zip(_offsets(len(variants)), variants, strict=True):
            mine = {row["setting"]: row for row in rows if row["variant"] == name}
            first = next(iter(mine.values()))
            found = [score(first, "unlearned"), *(score(mine[step], "attacked") for step in steps[1:] if step in mine)]
            points = [(place + 0.6 * offset, each) for place, each in enumerate(found) if each]
            style = _line(findings, name)
            axes.plot([x for x, _ in points], [y[0] for _, y in points], linewidth=1, alpha=0.6, color=style["color"])
            for x, y in points:
                axes.errorbar(x, y[0], yerr=_bar(y), **style, markersize=_size(name) - 1.5, elinewidth=1.2,
                              markeredgecolor=PAPER, markeredgewidth=0.6)  # fmt: skip
        axes.set_xticks(range(len(steps)), [short(step, 14) for step in steps])
        axes.set_xlim(-0.5, len(steps) - 0.5)
        axes.grid(axis="x", visible=False)
        axes.tick_params(length=0, labelcolor=INK)
        axes.set_ylabel(f"{_axis(column)} {_arrow(column)}")
        _handles(canvas, findings, variants)

    return draw(
        slug("attacked", attack, column.task or "", column.metric),
        f"{column.label} under “{short(attack, 30)}”",
        "Each line is a model with its 95 % intervals, before the attack and under it. The dotted line is the base "
        "model: what climbs back to it was hidden, not gone.",
        (5.0, 3.7),
        paint,
    )


def erased(findings: Findings, column: Column, attribute: str) -> Figure | None:
    """How much each subset's model, and the merged ones, changed each attribute value."""
    values = findings.attributes(column)[attribute]
    variants = [name for name in findings.subset_of if name in findings.variants]
    if not variants or "base" not in findings.variants or len(values) > MANY:
        return None
    # The diagonal is each model on its own subset, wherever the values have the subsets' names.
    variants.sort(
        key=lambda name: values.index(found) if (found := findings.subset_of[name]) in values else len(values)
    )
    variants += [name for name in ("joint", "spunge") if name in findings.variants]
    factor = 100 if column.share else 1
    rows = [
        [_difference(findings.comparison(name, "base", column, attribute, value), factor) for value in values]
        for name in variants
    ]
    labels = [findings.subset_of.get(name) or named(name) for name in variants]
    return _matrix(
        slug("erased", column.suite, column.task or "", column.metric, attribute),
        "Who erased whom",
        f"Change of {column.label} from the base model, {'in points' if column.share else 'absolute'}: rows are models "
        f"that unlearned one subset (and joint and SPUNGE), columns the {plain(attribute)} that was asked.",
        np.array(rows, float),
        labels,
        values,
        digits=0 if column.share else 2,
        sign=1 if column.higher_is_better else -1,
    )


def cosines(diagnostics: Mapping[str, Any]) -> Figure | None:
    """Cosines between the subsets' task vectors."""
    overall = diagnostics.get("overall") or {}
    found, names = overall.get("cosines") or {}, list(overall.get("coverage") or {})
    if not found or not 2 <= len(names) <= MANY:
        return None

    def cosine(one: str, two: str) -> float:
        known = found.get(one, {}).get(two, found.get(two, {}).get(one))
        return 1.0 if one == two else math.nan if known is None else known

    rows = [[cosine(one, two) for two in names] for one in names]
    return _matrix(
        "cosines",
        "How alike the task vectors are",
        "Cosine between the task vectors of the subsets: 1 the same direction, 0 nothing in common, below 0 opposed.",
        np.array(rows, float),
        names,
        names,
        digits=2,
        sign=1,
        limit=1.0,
    )


def coverage(diagnostics: Mapping[str, Any]) -> Figure | None:
    """How much of each subset's removal is in the merged task vector."""
    overall = diagnostics.get("overall") or {}
    found = {name: share for name, share in (overall.get("coverage") or {}).items() if share is not None}
    if not found or len(found) > MANY:
        return None

    def paint(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        names = list(found)
        shares = [100 * found[name] for name in names]
        axes.barh(range(len(names)), shares, height=0.55, color=COLOURS["spunge"])
        for row, share in enumerate(shares):
            axes.annotate(
                f"{share:.0f}", (share, row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8
            )
        axes.set_yticks(range(len(names)), [short(name, 22) for name in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(min(0, *shares), 1.12 * max(100, *shares))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.grid(axis="y", visible=False)
        axes.tick_params(length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("% of its own removal")

    return draw(
        "coverage",
        "What the merge holds of each subset",
        "The merged task vector's projection on each subset's own: 100 % is all of its removal, 0 % none.",
        (4.7, max(1.8, 0.9 + 0.3 * len(found))),
        paint,
    )


def drift(diagnostics: Mapping[str, Any]) -> Figure | None:
    """How the merge went, layer by layer: sign conflict and the share of the norm that is left."""
    layers = diagnostics.get("layers") or {}
    measures = {"sign_conflict": "sign conflict", "norm_ratio": "merged norm"}
    series = {
        label: [
            (str(layer), row[name])
            for layer, row in layers.items()
            if isinstance(row, Mapping) and row.get(name) is not None
        ]
        for name, label in measures.items()
    }
    series = {label: points for label, points in series.items() if len(points) > 1}
    if not series:
        return None

    def paint(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        for (label, points), colour, marker in zip(series.items(), (WORSE, COLOURS["spunge"]), "so", strict=False):
            axes.plot([x for x, _ in points], [100 * y for _, y in points], marker=marker, label=label, color=colour)
        axes.set_xlabel("layer")
        axes.set_ylabel("%")
        axes.set_ylim(bottom=0)
        axes.tick_params(length=0)
        _legend(canvas, axes, len(series))

    return draw(
        "drift",
        "The merge, layer by layer",
        "Share of entries on which two subsets pull in opposite directions, and the norm of the merge against the "
        "mean of theirs.",
        (4.7, 3.0),
        paint,
    )


def training(findings: Findings, curves: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure | None:
    """Losses and cosines over the steps of every training."""
    curves = {name: rows for name, rows in curves.items() if len(rows) > 1}
    measures = [
        name
        for name in dict.fromkeys(key for rows in curves.values() for key in rows[0])
        if name not in ("step", "epoch", "learning_rate", "seconds", "time")
    ][:6]
    if not measures:
        return None

    def paint(canvas: Canvas) -> None:
        across = 2 if len(measures) == 4 else min(3, len(measures))
        grid = canvas.subplots(math.ceil(len(measures) / across), across, squeeze=False)
        for place, measure in zip(grid.flat, measures, strict=False):
            for index, (name, rows) in enumerate(curves.items()):
                points = [(row.get("step", at), row[measure]) for at, row in enumerate(rows) if measure in row]
                if points:
                    dashes = "-" if name in COLOURS else _DASHES[index % 4]
                    xs, ys = smoothed(points)
                    place.plot(xs, ys, color=_colour(findings, name), linestyle=dashes, linewidth=1.2, alpha=0.9)
            place.set_title(short(measure.replace("_", " "), 26), fontsize=9, color=INK, loc="left")
            place.tick_params(length=0, labelsize=8, labelcolor=MUTED)
            place.set_xlabel("step", fontsize=8)
        for place in list(grid.flat)[len(measures) :]:
            place.set_visible(False)
        _handles(canvas, findings, [name for name in curves if name in COLOURS], others=len(curves), line=True)

    return draw(
        "training",
        "While it unlearned",
        f"Losses and cosines over the steps of each training, each point the mean of one of {POINTS} stretches of it.",
        (9.4, 2.7 * math.ceil(len(measures) / (2 if len(measures) == 4 else 3))),
        paint,
        wide=True,
    )


def smoothed(points: Sequence[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the means of consecutive stretches of a curve: single batches say little, and hide the curves behind."""
    parts = np.array_split(np.array(points, float), min(POINTS, len(points)))
    means = np.array([part.mean(0) for part in parts])
    return means[:, 0], means[:, 1]


def costs(findings: Findings) -> Figure | None:
    """Seconds and memory by kind of stage and variant."""
    rows: dict[tuple[str, str], list[float]] = {}
    for stage in findings.results["provenance"]["stages"]:
        if stage["seconds"] is not None:
            kind, name = stage["stage"], stage["name"] or stage["stage"]
            # The merges of a sweep, which differ in settings alone, make one bar a variant.
            own = name.partition(" (")[0] if kind == "merge" else name
            label = f"{kind}: {named(own)}" if kind in ("unlearn", "merge") else f"{kind}: all"
            entry = rows.setdefault((kind, label), [0.0, 0.0])
            entry[0] += stage["seconds"]
            entry[1] = max(entry[1], (stage["peak_memory"] or 0) / 2**20)
    if not rows or len(rows) > 40:
        return None

    def paint(canvas: Canvas) -> None:
        left, right = canvas.subplots(1, 2, sharey=True)
        labels = [label for _, label in rows]
        for axes, index, unit in ((left, 0, "seconds"), (right, 1, "peak memory, MiB")):
            figures = [row[index] for row in rows.values()]
            axes.barh(range(len(rows)), figures, height=0.55, color=(COLOURS["spunge"], OTHER)[index])
            for place, figure in enumerate(figures):
                if figure:
                    text = f"{figure:.1f}" if index == 0 else f"{figure:,.0f}"
                    axes.annotate(
                        text, (figure, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8
                    )
            axes.set_xlim(0, 1.2 * (max(figures) or 1))
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.set_xlabel(unit)
            axes.grid(axis="y", visible=False)
            axes.tick_params(length=0)
            axes.spines["left"].set_visible(False)
        left.set_yticks(range(len(rows)), [short(label, 30) for label in labels])
        left.set_ylim(len(rows) - 0.5, -0.5)

    return draw(
        "costs",
        "Time and memory",
        "Seconds, summed over seeds and settings, and the largest peak memory, by stage.",
        (8.6, 0.9 + 0.27 * len(rows)),
        paint,
        wide=True,
    )


def wrapped(text: str) -> str:
    """Breaks a name into at most two short lines."""
    words = textwrap.wrap(short(text, 60).replace("_", " "), 12)
    return "\n".join([*words[:1], *([words[1] + ("…" if len(words) > 2 else "")] if len(words) > 1 else [])])


def short(text: str, length: int) -> str:
    """Cuts a name for a figure, on one line and without characters that are no text."""
    text = plain(text).strip() or "(empty)"
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


POINTS = 60
"""How many points a training curve is drawn with, at most."""

MANY = 30
"""More attribute values than this are a table's business, not a figure's."""

_OF_RUNS = [COLOURS[name] for name in ("spunge", "joint", "joint_equal_steps", "random_split")] + [OTHER]

_BRIEF = {"joint_equal_steps": "equal steps"}

_DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))


def _matrix(
    key: str,
    title: str,
    caption: str,
    numbers: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    digits: int,
    sign: int,
    limit: float | None = None,
) -> Figure:
    """A grid of numbers on a ground that is blue where better, orange where worse."""
    known = np.abs(numbers[~np.isnan(numbers)])
    limit = limit or (float(known.max()) if known.size and known.max() else 1.0)

    def paint(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        for (row, column), number in np.ndenumerate(numbers):
            if np.isnan(number):
                continue
            strength = min(1.0, abs(number) / limit)
            colour = COLOURS["spunge"] if sign * number > 0 else COLOURS["joint"]
            axes.add_patch(
                Rectangle(
                    (column - 0.47, row - 0.46), 0.94, 0.92, facecolor=colour, alpha=0.06 + 0.42 * strength, linewidth=0
                )
            )
            text = f"{number:.{digits}f}".replace("-", "−") if limit == 1.0 else signed(number, digits)
            axes.text(column, row, text, ha="center", va="center", fontsize=8.5, color=INK)
        tilt = 0 if len(columns) <= 4 or (max(map(len, columns)) <= 8 and len(columns) <= 6) else 40
        heads = [short(name, 22) if tilt else wrapped(name) for name in columns]
        axes.set_xticks(range(len(columns)), heads, rotation=tilt)
        if tilt:
            for label in axes.get_xticklabels():
                label.set_horizontalalignment("left")
        axes.xaxis.tick_top()
        axes.set_yticks(range(len(rows)), [short(name, 20) for name in rows])
        axes.tick_params(length=0, labelcolor=INK)
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)

    size = (1.8 + (0.62 if len(columns) > 4 else 0.9) * len(columns), 1.1 + 0.32 * len(rows))
    return draw(key, title, caption, (max(size[0], 3.6), max(size[1], 2.0)), paint, wide=size[0] > 5.4)


def _chance(axes: Axes, level: float) -> None:
    axes.axvline(level, color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
    axes.annotate(
        "chance", (level, 0.015), xycoords=("data", "axes fraction"), xytext=(4, 0),
        textcoords="offset points", color=MUTED, fontsize=8,
    )  # fmt: skip


def _dot(axes: Axes, findings: Findings, score: Row | None, column: Column, place: float, name: str) -> None:
    if score is None:
        return
    factor = 100 if column.share else 1
    colour = _colour(findings, name)
    if score["low"] is not None:
        ends = [factor * score["low"], factor * score["high"]]
        axes.plot(ends, [place, place], color=colour, linewidth=1.5, solid_capstyle="round")
    style = {"color": colour, "marker": _marker(findings, name), "markersize": _size(name) - 1.5}
    axes.plot(factor * score["value"], place, **style, markeredgecolor=PAPER, markeredgewidth=0.6)


def _mean(findings: Findings, name: str, columns: Sequence[Column]) -> tuple[float, float, float] | None:
    """The plain mean over columns of one unit, with the interval of that mean."""
    columns = [column for column in columns if column.share == columns[0].share]
    scores = [findings.score(name, column) for column in columns]
    if not scores or any(score is None or score["low"] is None for score in scores):
        return None
    factor = 100 if columns[0].share else 1
    known = [score for score in scores if score]
    value = float(np.mean([score["value"] for score in known]))
    below = math.sqrt(sum((score["value"] - score["low"]) ** 2 for score in known)) / len(known)
    above = math.sqrt(sum((score["high"] - score["value"]) ** 2 for score in known)) / len(known)
    return factor * value, factor * (value - below), factor * (value + above)


def _bar(point: tuple[float, float, float]) -> list[list[float]]:
    return [[point[0] - point[1]], [point[2] - point[0]]]


def _pareto(points: Mapping[str, Any], forget_up: bool, retain_up: bool) -> list[tuple[float, float]]:
    placed = [(x[0], y[0]) for x, y in points.values()]
    sx, sy = (1 if forget_up else -1), (1 if retain_up else -1)

    def beaten(p: tuple[float, float]) -> bool:
        return any(sx * q[0] >= sx * p[0] and sy * q[1] >= sy * p[1] and q != p for q in placed)

    return sorted({point for point in placed if not beaten(point)})


def _line(findings: Findings, name: str) -> dict[str, Any]:
    return {"color": _colour(findings, name), "marker": _marker(findings, name)}


def _colour(findings: Findings, name: str) -> str:
    if findings.runs and name in findings.shown[1:]:
        return _OF_RUNS[findings.shown.index(name) - 1]
    return COLOURS.get(name, OTHER)


def _marker(findings: Findings, name: str) -> str:
    if findings.runs and name in findings.shown[1:]:
        return "psD^v"[findings.shown.index(name) - 1]
    return MARKERS.get(name, "o")


def _size(name: str) -> float:
    return 9.5 if name == "spunge" else 7.0 if name in MARKERS else 5.5


def _offsets(count: int) -> list[float]:
    return [min(0.24, 0.76 / count) * (index - (count - 1) / 2) for index in range(count)]


def _value(score: Row | None, column: Column) -> float:
    return math.nan if score is None else score["value"] * (100 if column.share else 1)


def _difference(row: Row | None, factor: float) -> float:
    return math.nan if row is None else factor * row["difference"]


def _axis(column: Column) -> str:
    return f"{short(column.label, 30)}{' (%)' if column.share else ''}"


def _arrow(column: Column) -> str:
    return "→ better" if column.higher_is_better else "← better"


def _legend(canvas: Canvas, axes: Axes, count: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=count, handletextpad=0.5, columnspacing=1.4)


def _handles(canvas: Canvas, findings: Findings, names: Sequence[str], *, others: int = 0, line: bool = False) -> None:
    style = "-" if line else ""
    handles = [
        Line2D([], [], color=colour, marker="" if line else marker, linestyle=style, label=short(named(name), 26))
        for name in names
        for colour, marker in [(_colour(findings, name), _marker(findings, name))]
    ]
    if others > len(names):
        handles.append(
            Line2D(
                [],
                [],
                color=OTHER,
                marker="" if line else "o",
                linestyle=style,
                label="another variant" if findings.runs else "a subset's model",
            )
        )
    canvas.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(len(handles), 2 if findings.runs else 3),
        handletextpad=0.4,
        columnspacing=1.4,
    )


_FONT = re.compile(r"(?:(\d{3}|bold|italic)\s+)*([\d.]+)px\s+.*")


def _inline(figure: Figure) -> str:
    svg = figure.svg[figure.svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    # A strict content-security-policy allows no style attributes; presentation attributes say the same.
    svg = re.sub(r' style="([^"]*)"', lambda match: _attributes(match.group(1)), svg)
    svg = re.sub(r'(id="|href="#|url\(#)', lambda match: f"{match.group(1)}{figure.key}-", svg)
    head, body = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    width = re.search(r'width="([\d.]+)pt"', head)
    assert box
    assert width
    pixels = float(width.group(1)) * 4 / 3
    name = f"{figure.key}-title"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {box.group()} '
        f'width="{pixels:.0f}" role="img" aria-labelledby="{name}"><title id="{name}">{_escape(figure.title)}. '
        f"{_escape(figure.caption)}</title>{body}"
    )


def _attributes(style: str) -> str:
    found = []
    for declaration in style.split(";"):
        name, _, value = (part.strip() for part in declaration.partition(":"))
        if name == "font":
            size = _FONT.fullmatch(value)
            assert size, value
            found.append(f'font-size="{size.group(2)}"')
        elif name and name != "font-family":
            found.append(f'{name}="{_themed(value)}"')
    return (" " + " ".join(found)) if found else ""


def _themed(value: str) -> str:
    return f"var({THEME[value]})" if value in THEME else value


def _escape(text: str) -> str:
    return plain(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

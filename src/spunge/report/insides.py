"""Figures of a run's inside: what the merge did to the subsets, how the training went, and what everything cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from spunge.report import drawing
from spunge.report.drawing import (
    INK,
    MANY,
    MUTED,
    OTHER,
    WORSE,
    Caption,
    Figure,
    Grid,
    legend_below,
    legend_of,
    look,
    matrix,
    short,
)
from spunge.report.findings import Findings
from spunge.variants import BASE, MERGED, ROLES, label_of

POINTS = 60
"""How many points a training curve is drawn with, at most."""

_DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))


def cosines(diagnostics: Mapping[str, Any]) -> Figure | None:
    """Cosines between the subsets' task vectors."""
    overall = diagnostics.get("overall") or {}
    by_pair, names = overall.get("cosines") or {}, list(overall.get("coverage") or {})
    if not by_pair or not 2 <= len(names) <= MANY:
        return None

    def cosine(one: str, two: str) -> float:
        known = by_pair.get(one, {}).get(two, by_pair.get(two, {}).get(one))
        return 1.0 if one == two else math.nan if known is None else known

    rows = [[cosine(one, two) for two in names] for one in names]
    return matrix(
        Caption(
            "cosines",
            "How alike the task vectors are",
            "Cosine between the task vectors of the subsets: 1 the same direction, 0 nothing in common, below 0 "
            "opposed.",
        ),
        Grid(np.array(rows, float), names, names, digits=2, sign=1, limit=1.0),
    )


def coverage(diagnostics: Mapping[str, Any]) -> Figure | None:
    """How much of each subset's removal is in the merged task vector."""
    overall = diagnostics.get("overall") or {}
    fractions = {name: share for name, share in (overall.get("coverage") or {}).items() if share is not None}
    if not fractions or len(fractions) > MANY:
        return None

    def paint(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        names = list(fractions)
        shares = [100 * fractions[name] for name in names]
        axes.barh(range(len(names)), shares, height=0.55, color=MERGED.colour)
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

    return drawing.draw(
        Caption(
            "coverage",
            "What the merge holds of each subset",
            "The merged task vector's projection on each subset's own: 100 % is all of its removal, 0 % none.",
        ),
        (4.7, max(1.8, 0.9 + 0.3 * len(fractions))),
        paint,
    )


def drift(diagnostics: Mapping[str, Any]) -> Figure | None:
    """How the merge went, layer by layer: sign conflict and the share of the norm that is left."""
    layers = diagnostics.get("layers") or {}
    measures = {
        "sign_conflict": "sign conflict", "sign_conflict_by_chance": "by chance", "norm_ratio": "merged norm",
    }  # fmt: skip
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
        for (label, points), colour, marker in zip(
            series.items(), (WORSE, BASE.colour, MERGED.colour), "sdo", strict=False
        ):
            axes.plot([x for x, _ in points], [100 * y for _, y in points], marker=marker, label=label, color=colour)
        axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))  # of thirty layers not every one is named
        axes.set_xlabel("layer")
        axes.set_ylabel("%")
        axes.set_ylim(bottom=0)
        axes.tick_params(length=0)
        legend_below(canvas, axes, len(series))

    return drawing.draw(
        Caption(
            "drift",
            "The merge, layer by layer",
            "Share of entries on which two subsets pull in opposite directions, and the norm of the merge against the "
            "mean of theirs.",
        ),
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
        for axes, measure in zip(grid.flat, measures, strict=False):
            for index, (name, rows) in enumerate(curves.items()):
                points = [(row.get("step", at), row[measure]) for at, row in enumerate(rows) if measure in row]
                if points:
                    dashes = "-" if name in ROLES else _DASHES[index % 4]
                    xs, ys = smoothed(points)
                    axes.plot(xs, ys, color=look(findings, name)[0], linestyle=dashes, linewidth=1.2, alpha=0.9)
            axes.set_title(short(measure.replace("_", " "), 26), fontsize=9, color=INK, loc="left")
            axes.tick_params(length=0, labelsize=8, labelcolor=MUTED)
            axes.set_xlabel("step", fontsize=8)
        for axes in list(grid.flat)[len(measures) :]:
            axes.set_visible(False)
        legend_of(canvas, findings, [name for name in curves if name in ROLES], others=len(curves), line=True)

    return drawing.draw(
        Caption(
            "training",
            "While it unlearned",
            f"Losses and cosines over the steps of each training, each point the mean of one of {POINTS} stretches "
            "of it.",
        ),
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
    for stage in findings.work:
        if stage["seconds"] is not None:
            kind, name = stage["stage"], stage["name"] or stage["stage"]
            # The merges of a sweep, which differ in settings alone, make one bar a variant.
            whole = name.partition(" (")[0] if kind == "merge" else name
            bar = f"{kind}: {label_of(whole)}" if kind in ("unlearn", "merge") else f"{kind}: all"
            entry = rows.setdefault((kind, bar), [0.0, 0.0])
            entry[0] += stage["seconds"]
            entry[1] = max(entry[1], (stage["peak_memory"] or 0) / 2**20)
    if not rows or len(rows) > 40:
        return None

    def paint(canvas: Canvas) -> None:
        left, right = canvas.subplots(1, 2, sharey=True)
        labels = [label for _, label in rows]
        for axes, index, unit in ((left, 0, "seconds"), (right, 1, "peak memory, MiB")):
            figures = [row[index] for row in rows.values()]
            axes.barh(range(len(rows)), figures, height=0.55, color=(MERGED.colour, OTHER)[index])
            for height, figure in enumerate(figures):
                if figure:
                    text = f"{figure:.1f}" if index == 0 else f"{figure:,.0f}"
                    axes.annotate(
                        text, (figure, height), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8
                    )
            axes.set_xlim(0, 1.2 * (max(figures) or 1))
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.set_xlabel(unit)
            axes.grid(axis="y", visible=False)
            axes.tick_params(length=0)
            axes.spines["left"].set_visible(False)
        left.set_yticks(range(len(rows)), [short(label, 30) for label in labels])
        left.set_ylim(len(rows) - 0.5, -0.5)

    return drawing.draw(
        Caption(
            "costs",
            "Time and memory",
            "Seconds, summed over seeds and settings, and the largest peak memory, by stage.",
        ),
        (8.6, 0.9 + 0.27 * len(rows)),
        paint,
        wide=True,
    )

"""How every figure of the page is drawn: how variants look, the canvas, and SVG that the page can theme."""

from __future__ import annotations

import base64
import io
import re
import textwrap
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from spunge.report.findings import Findings
from spunge.report.tables import plain, signed
from spunge.variants import JOINT, JOINT_EQUAL_STEPS, MERGED, RANDOM_SPLIT, ROLES, label_of

INK, MUTED, GRID, PAPER = "#1c2430", "#5a6472", "#dcdfe4", "#fefefd"

OTHER = "#3c8f7c"
"""The colour of a subset's own model; colours are told apart by the colour-blind, and each has its own marker."""

BETTER, WORSE = "#0f7b6c", "#b4412b"

THEME = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--line",
    PAPER: "--card",
    OTHER: "--other",
    BETTER: "--better",
    WORSE: "--worse",
    **{role.colour: role.css for role in ROLES.values()},
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

_RUNS = [(role.colour, role.marker) for role in (MERGED, JOINT, JOINT_EQUAL_STEPS, RANDOM_SPLIT)] + [(OTHER, "v")]
"""How the runs of a comparison look, the first first."""

MANY = 30
"""More attribute values than this are a table's business, not a figure's."""

_FONT = re.compile(r"(?:(\d{3}|bold|italic)\s+)*([\d.]+)px\s+.*")


@dataclass(frozen=True)
class Figure:
    """One picture: a name for its file, a title, what it shows in words, the SVG, and matplotlib's own object."""

    key: str
    title: str
    caption: str
    svg: str
    canvas: Canvas
    wide: bool = False

    @property
    def inline(self) -> str:
        """The SVG as it stands in the page: no styles of its own, colours from the page, a title for readers."""
        return _inline(self)

    def save(self, file: Path, *, dpi: int = 200) -> None:
        """Writes it in the form that the file's ending names: png, pdf, svg and whatever else matplotlib writes."""
        with mpl.rc_context(_STYLE), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            self.canvas.savefig(file, dpi=dpi, facecolor="white")


@dataclass(frozen=True)
class Caption:
    """What stands around a figure: a name for its file, a title, and what it shows in words."""

    key: str
    title: str
    text: str


@dataclass(frozen=True)
class Grid:
    """A matrix of numbers with the names of its rows and columns."""

    numbers: np.ndarray
    """[rows, columns]; NaN where there is none."""
    rows: Sequence[str]
    columns: Sequence[str]
    digits: int
    """How many after the point."""
    sign: int
    """1 where more is better, -1 where less is."""
    limit: float | None = None
    """The number that has the strongest ground; None: the largest there is. With 1.0 numbers have no plus sign."""


def draw(
    caption: Caption,
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
    return Figure(caption.key, caption.title, caption.text, out.getvalue(), canvas, wide)


def matrix(caption: Caption, grid: Grid) -> Figure:
    """A grid of numbers on a ground that is blue where better, orange where worse."""
    numbers, rows, columns = grid.numbers, grid.rows, grid.columns
    known = np.abs(numbers[~np.isnan(numbers)])
    limit = grid.limit or (float(known.max()) if known.size and known.max() else 1.0)

    def paint(canvas: Canvas) -> None:
        axes = canvas.add_subplot()
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        for (row, column), number in np.ndenumerate(numbers):
            if np.isnan(number):
                continue
            strength = min(1.0, abs(number) / limit)
            colour = MERGED.colour if grid.sign * number > 0 else JOINT.colour
            axes.add_patch(
                Rectangle(
                    (column - 0.47, row - 0.46), 0.94, 0.92, facecolor=colour, alpha=0.06 + 0.42 * strength, linewidth=0
                )
            )
            text = f"{number:.{grid.digits}f}".replace("-", "−") if limit == 1.0 else signed(number, grid.digits)
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
    return draw(caption, (max(size[0], 3.6), max(size[1], 2.0)), paint, wide=size[0] > 5.4)


def legend_below(canvas: Canvas, axes: Axes, count: int) -> None:
    """Puts the legend of what was drawn under the figure."""
    handles, labels = axes.get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=count, handletextpad=0.5, columnspacing=1.4)


def legend_of(canvas: Canvas, findings: Findings, names: Sequence[str], *, others: int = 0, line: bool = False) -> None:
    """Puts a legend of variants under the figure; with more drawn than named, an entry for the others."""
    style = "-" if line else ""
    handles = [
        Line2D([], [], color=colour, marker="" if line else marker, linestyle=style, label=short(label_of(name), 26))
        for name in names
        for colour, marker in [look(findings, name)]
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


def line_of(findings: Findings, name: str) -> dict[str, Any]:
    """How a line of a variant looks."""
    return dict(zip(("color", "marker"), look(findings, name), strict=True))


def look(findings: Findings, name: str) -> tuple[str, str]:
    """The colour and the marker of a variant, so that colour alone never tells; of a comparison, those of the run."""
    if findings.runs and name in findings.shown[1:]:
        return _RUNS[findings.shown.index(name) - 1]
    role = ROLES.get(name)
    return (role.colour, role.marker) if role else (OTHER, "o")


def size_of(name: str) -> float:
    """The size of its marker: the merged model stands out."""
    return 9.5 if name == MERGED.name else 7.0 if name in ROLES else 5.5


def wrapped(text: str) -> str:
    """Breaks a name into at most two short lines."""
    words = textwrap.wrap(short(text, 60).replace("_", " "), 12)
    return "\n".join([*words[:1], *([words[1] + ("…" if len(words) > 2 else "")] if len(words) > 1 else [])])


def short(text: str, length: int) -> str:
    """Cuts a name for a figure, on one line and without characters that are no text."""
    text = plain(text).strip() or "(empty)"
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def _inline(figure: Figure) -> str:
    """The SVG with the page's colours; where matplotlib writes it in another way, the SVG as it is, as a picture."""
    try:
        return _themed_svg(figure)
    except _Unknown:
        data = base64.b64encode(figure.svg.encode()).decode()
        return f'<img alt="{_escape(figure.title)}. {_escape(figure.caption)}" src="data:image/svg+xml;base64,{data}">'


class _Unknown(Exception):
    """The SVG is not as this module knows it."""


def _themed_svg(figure: Figure) -> str:
    svg = figure.svg[max(figure.svg.find("<svg"), 0) :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    # A strict content-security-policy allows no style attributes; presentation attributes say the same.
    svg = re.sub(r' style="([^"]*)"', lambda match: _attributes(match.group(1)), svg)
    svg = re.sub(r'(id="|href="#|url\(#)', lambda match: f"{match.group(1)}{figure.key}-", svg)
    head, _, body = svg.partition(">")
    box, width = re.search(r'viewBox="[^"]*"', head), re.search(r'width="([\d.]+)pt"', head)
    if box is None or width is None or "style" in re.sub(r">[^<]*<", "><", body):
        raise _Unknown
    pixels = float(width.group(1)) * 4 / 3
    name = f"{figure.key}-title"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {box.group()} '
        f'width="{pixels:.0f}" role="img" aria-labelledby="{name}"><title id="{name}">{_escape(figure.title)}. '
        f"{_escape(figure.caption)}</title>{body}"
    )


def _attributes(style: str) -> str:
    attributes = []
    for declaration in style.split(";"):
        name, _, value = (part.strip() for part in declaration.partition(":"))
        if name == "font":
            size = _FONT.fullmatch(value)
            if size is None:
                raise _Unknown
            attributes.append(f'font-size="{size.group(2)}"')
        elif name and name != "font-family":
            attributes.append(f'{name}="{_themed(value)}"')
    return (" " + " ".join(attributes)) if attributes else ""


def _themed(value: str) -> str:
    return f"var({THEME[value]})" if value in THEME else value


def _escape(text: str) -> str:
    return plain(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

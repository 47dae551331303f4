"""The page of a search: the verdict, both fronts in one picture, what was judged, every trial, the time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import LogLocator, NullFormatter

from spunge.auto import telling
from spunge.files import replace_text
from spunge.report import page as report
from spunge.report.drawing import Caption, Figure, draw
from spunge.report.tables import Table
from spunge.variants import JOINT, MERGED, Role

_ROLES: Mapping[str, Role] = {"joint": JOINT, "merged": MERGED}


def write(result: Mapping[str, Any], trials: Sequence[Mapping[str, Any]], kind: str, out: Path) -> Path:
    """Writes the page of a result.

    Args:
        result: As `result.json` has it.
        trials: Every trial, for the table.
        kind: What was asked.
        out: The file.
    """
    wish = result["wish"]
    tables: list[Table] = [telling.judged_table(result, kind), telling.front_table(result, kind)]
    tables.append(telling.trial_table(trials, kind))
    style, style_hash = report.style_and_hash()
    template = (Path(__file__).parent / "page.html.j2").read_text(encoding="utf-8")
    text = report.environment().from_string(template).render(
        wish=wish,
        lines=telling.verdict(result, kind, wish["damage"]),
        worked=result["worked"],
        plan=result["plan"],
        figure=picture(result, kind, wish["damage"]),
        tables=tables,
        times=telling.times(result),
        downloads=report.downloads,
        style=Markup(style),
        style_hash=style_hash,
    )  # fmt: skip
    replace_text(out, text)
    return out


def picture(result: Mapping[str, Any], kind: str, budget: float) -> Figure:
    """Draws both fronts: forgotten against damage, the budget, and the choice of each arm on the test part."""

    def paint(canvas: Canvas) -> None:
        axes = canvas.subplots()
        for arm, role in _ROLES.items():
            points = [one for one in result["front"].get(arm, ()) if one["damage"]]
            axes.plot(
                [one["damage"] for one in points], [one["forgotten"] for one in points], role.marker + "-",
                color=role.colour, label=role.label, markersize=5,
            )  # fmt: skip
            if (judged := result["arms"].get(arm)) and judged["test"]["damage"]:
                test = judged["test"]
                low, high = test["low"] or test["forgotten"], test["high"] or test["forgotten"]
                axes.errorbar(
                    [test["damage"]], [test["forgotten"]],
                    yerr=[[max(0.0, test["forgotten"] - low)], [max(0.0, high - test["forgotten"])]],
                    fmt=role.marker, color=role.colour, markersize=10, mfc="none", capsize=3,
                    label=f"{role.label}, judged",
                )  # fmt: skip
        axes.axvline(budget, color="#5a6472", linestyle=":", linewidth=1)
        axes.set_xscale("log")
        # Not matplotlib's own: it writes powers of ten as formulas, and so many that they run into each other.
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(lambda value, _: telling.damage(value))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("damage (KL, nats per token)")
        axes.set_ylabel(f"forgotten ({telling.unit(kind)})")
        canvas.legend(loc="outside lower center", ncols=4)

    caption = Caption(
        "front", "What is forgotten at which damage",
        "Lines: on the rows to tune on, no point of its arm beats them. Rings: each arm's choice as judged, with its "
        "95 % interval. Dotted: the budget.",
    )  # fmt: skip
    return draw(caption, (7.2, 4.2), paint)

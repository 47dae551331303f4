"""Writes the tables of docs/study.md from the results of the studies, so that no figure there is typed by hand.

python studies/tables.py            # after a study was run: between `<!-- arms NAME -->` or `<!-- contrasts NAME -->`
                                    # and the next `<!-- end -->` stands what results/NAME.json says
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import study
import summary

STUDIES = Path(__file__).parent
PAGE = STUDIES.parent / "docs" / "study.md"
MARKED = re.compile(r"(<!-- (arms|contrasts|trials) ([\w-]+) -->\n).*?(<!-- end -->)", re.S)

Results = Mapping[str, Sequence[Mapping[str, Any]]]


def arms(results: Results, signs: Mapping[str, int], order: Iterable[str]) -> str:
    """Returns the table of the arms: what each forgets at every point, of its worst group too, and what it took."""
    rows = [row for row in results["arms"] if row["arm"] != "base"]
    points = sorted({row["point"] for row in rows}, reverse=True)  # near before far
    chosen = {trial["arm"]: _rate(trial["settings"]) for trial in results.get("tuning", ()) if trial["chosen"]}
    head = ["arm", "seeds", *(["learning rate"] if chosen else [])]
    for point in points:
        head += [f"{point}: forgotten", "worst group"]
    lines = [[*head, "λ near", "steps"]]
    for arm in order:
        at = {row["point"]: row for row in rows if row["arm"] == arm}
        line = [arm, str(len(at[points[0]]["seeds"])), *([chosen[arm]] if chosen else [])]
        for point in points:
            sign = signs[at[point]["suite"]]
            line += [f"{sign * at[point]['mean']:.3f}", f"{min(sign * x for x in at[point]['by_group'].values()):.3f}"]
        spent = at[points[0]]
        lines.append([*line, f"{spent['scale']:.2f}", f"{spent['steps']:.0f}"])
    return _markdown(lines)


def contrasts(results: Results, signs: Mapping[str, int]) -> str:
    """Returns the table of the contrasts: how much more the first forgets than the second, at every point."""
    rows = results["contrasts"]
    points = sorted({row["point"] for row in rows}, reverse=True)
    lines = [["difference", "seeds", *points, "could be found near"]]
    for pair in dict.fromkeys(tuple(row["arms"]) for row in rows):
        at = {row["point"]: row for row in rows if tuple(row["arms"]) == pair}
        told = [_difference(at[point], signs[at[point]["suite"]]) for point in points]
        first = at[points[0]]
        lines.append([" − ".join(pair), str(first["seeds"]), *told, f"{first['detectable']:.3f}"])
    return _markdown(lines)


def trials(results: Results) -> str:
    """Returns the table of the trials: what each arm forgot of the validation part, averaged over the points."""
    rows = results["tuning"]
    rates = dict.fromkeys(_rate(row["settings"]) for row in rows)
    lines = [["arm", *rates]]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        line = [arm]
        for row in (row for row in rows if row["arm"] == arm):
            mean = f"{sum(row['forgotten'].values()) / len(row['forgotten']):.3f}"
            line.append(f"**{mean}**" if row["chosen"] else mean)
        lines.append(line)
    return _markdown(lines)


def written(page: str) -> str:
    """Returns the page with every marked table as the results have it."""

    def table(found: re.Match[str]) -> str:
        start, kind, name, end = found.groups()
        results = json.loads((STUDIES / "results" / f"{name}.json").read_text(encoding="utf-8"))
        read = study.read(STUDIES / f"{name}.yaml")
        signs = {suite: summary.sign(score.metric) for suite, score in read.scores.items()}
        if kind == "trials":
            return start + trials(results) + end
        return start + (arms(results, signs, read.arms) if kind == "arms" else contrasts(results, signs)) + end

    return MARKED.sub(table, page)


def _difference(row: Mapping[str, Any], sign: int) -> str:
    low, high = sorted(sign * bound for bound in row["interval"])
    text = f"{sign * row['difference']:+.3f} [{low:+.3f}, {high:+.3f}]".replace("-", "−")
    return f"**{text}**" if low > 0 or high < 0 else text


def _rate(settings: Sequence[str]) -> str:
    return ", ".join(setting.partition("=")[2] for setting in settings)


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *rows = ("| " + " | ".join(line).replace("-0", "−0") + " |\n" for line in lines)
    return head + "|---" * len(lines[0]) + "|\n" + "".join(rows)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")

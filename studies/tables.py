"""Writes tables of docs/study.md and docs/results.md from files with results, so that no figure there is typed by hand.

python studies/tables.py            # after a study was run: between `<!-- arms NAME -->` or `<!-- contrasts NAME -->`
                                    # and the next `<!-- end -->` stands what results/NAME.json says, and
                                    # benchmarks/results/methods-NAME.json after `<!-- methods NAME -->`
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
PAGES = [STUDIES.parent / "docs" / name for name in ("study.md", "results.md")]
METHODS = STUDIES.parent / "benchmarks" / "results"
MARKED = re.compile(r"(<!-- (arms|contrasts|trials|methods) ([\w-]+)(?: (\w+))? -->\n).*?(<!-- end -->)", re.S)

Results = Mapping[str, Sequence[Mapping[str, Any]]]


def arms(results: Results, sign: int, order: Iterable[str]) -> str:
    """Returns the table of the arms: what each forgets at every point, of its worst group too, and what it took.

    Args:
        results: Of one suite.
        sign: −1 where a score falls as something is forgotten.
        order: The arms.
    """
    rows = [row for row in results["arms"] if row["arm"] != "base"]
    points = sorted({row["point"] for row in rows}, reverse=True)  # near before far
    chosen = {trial["arm"]: _rate(trial["settings"]) for trial in results.get("tuning", ()) if trial["chosen"]}
    parted = any("cosine" in row for row in rows)
    head = ["arm", "seeds", *(["learning rate"] if chosen else [])]
    for point in points:
        head += [f"{point}: forgotten", "worst group"]
    lines = [[*head, "λ near", "steps", *(["parts' cosine"] if parted else [])]]
    for arm in order:
        at = {row["point"]: row for row in rows if row["arm"] == arm}
        line = [arm, str(len(at[points[0]]["seeds"])), *([chosen[arm]] if chosen else [])]
        for point in points:
            line += [f"{sign * at[point]['mean']:.3f}", f"{min(sign * x for x in at[point]['by_group'].values()):.3f}"]
        spent = at[points[0]]
        line += [f"{spent['scale']:.2f}", f"{spent['steps']:.0f}"]
        lines.append([*line, *([f"{spent['cosine']:.2f}" if "cosine" in spent else ""] if parted else [])])
    return _markdown(lines)


def contrasts(results: Results, sign: int) -> str:
    """Returns the table of the contrasts: how much more the first forgets than the second, at every point."""
    rows = results["contrasts"]
    points = sorted({row["point"] for row in rows}, reverse=True)
    lines = [["difference", "seeds", *points, "could be found near"]]
    for pair in dict.fromkeys(tuple(row["arms"]) for row in rows):
        at = {row["point"]: row for row in rows if tuple(row["arms"]) == pair}
        told = [_difference(at[point], sign) for point in points]
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


def methods(results: Mapping[str, Any]) -> str:
    """Returns the table of the methods: accuracy on what must go and what must stay, and the seconds of training."""
    lines = [["", "learning rate", "joint: hazards", "retained", "SPUNGE: hazards", "retained"]]
    lines[0] += ["CPU s, joint", "CPU s, subsets"]
    for name, row in results["rows"].items():
        accuracies = [f"{score:.3f}" for kind in ("joint", "merged") for score in row.get(kind, ())]
        line = [name, f"{row['learning_rate']:g}" if "learning_rate" in row else "", *accuracies]
        line += [f"{row[seconds]:.1f}" for seconds in ("seconds_joint", "seconds_subsets") if seconds in row]
        lines.append([*line, *[""] * (len(lines[0]) - len(line))])
    return _markdown(lines)


def written(page: str) -> str:
    """Returns the page with every marked table as the results have it."""

    def table(found: re.Match[str]) -> str:
        start, kind, name, suite, end = found.groups()
        if kind == "methods":
            return start + methods(json.loads((METHODS / f"methods-{name}.json").read_text(encoding="utf-8"))) + end
        results = json.loads((STUDIES / "results" / f"{name}.json").read_text(encoding="utf-8"))
        read = study.read(STUDIES / f"{name}.yaml")
        suite = suite or next(iter(read.scores))
        asked = {part: [row for row in rows if row.get("suite", suite) == suite] for part, rows in results.items()}
        sign = summary.sign(read.scores[suite].metric)
        if kind == "trials":
            return start + trials(asked) + end
        return start + (arms(asked, sign, read.arms) if kind == "arms" else contrasts(asked, sign)) + end

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
    for page in PAGES:
        page.write_text(written(page.read_text(encoding="utf-8")), encoding="utf-8")

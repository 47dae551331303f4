"""The tables of the report as plain data, and how each is written as CSV, LaTeX and Markdown."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import floor, isfinite, log10
from typing import Any

from spunge.report import paper
from spunge.report.findings import Column, Findings, improvement
from spunge.report.recovery import begun
from spunge.report.rows import Comparison, Ends, Score
from spunge.variants import BASE, JOINT, MERGED, ROLES, SUBSET, label_of

FEW_SUBSETS = 4
"""More subsets than this have a table of their own."""


@dataclass(frozen=True)
class Cell:
    """One cell: what it says, and the numbers behind it."""

    text: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    interval: str = ""
    tone: str = ""
    """`better`, `worse` or nothing: a difference that stands."""

    def __str__(self) -> str:
        return f"{self.text} {self.interval}".strip()


@dataclass(frozen=True)
class Table:
    """A titled grid; `header` and `rows` are what the terminal, the page and the downloads show alike."""

    key: str
    title: str
    note: str
    header: list[str]
    cells: list[list[Cell]] = field(repr=False)

    @property
    def rows(self) -> list[list[str]]:
        """Every cell as text."""
        return [[str(cell) for cell in row] for row in self.cells]

    def to_csv(self) -> str:
        """Returns comma-separated values with the intervals' ends in columns of their own, as plain numbers.

        A text that a spreadsheet would take for a formula has an apostrophe before it, as a spreadsheet writes it.
        """
        ranged = [any(row[index].low is not None for row in self.cells) for index in range(len(self.header))]
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\r\n")  # as RFC 4180 has it, and so that a lone \r is quoted
        header: list[str] = []
        for name, wide in zip(self.header, ranged, strict=True):
            header += [name, f"{name} low", f"{name} high"] if wide else [name]
        writer.writerow([_no_formula(name) for name in header])
        for row in self.cells:
            line: list[Any] = []
            for cell, wide in zip(row, ranged, strict=True):
                line.append(_no_formula(cell.text) if cell.value is None else repr(cell.value))
                if wide:
                    line += ["" if end is None else repr(end) for end in (cell.low, cell.high)]
            writer.writerow(line)
        return out.getvalue()

    def to_latex(self) -> str:
        """Returns a table for the booktabs package; names in other scripts need XeLaTeX or LuaLaTeX."""
        columns = "l" + "r" * (len(self.header) - 1)
        lines = [r"\begin{table}", r"\centering", rf"\caption{{{_latex(self.title)}}}"]
        lines += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
        lines += [" & ".join(_latex(name) for name in self.header) + r" \\", r"\midrule"]
        lines += [" & ".join(_latex(text) for text in row) + r" \\" for row in self.rows]
        lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
        return "\n".join(lines) + "\n"

    def to_markdown(self) -> str:
        """Returns a GitHub-flavoured Markdown table."""
        lines = ["| " + " | ".join(_markdown_cell(name) for name in self.header) + " |"]
        lines.append("|" + "|".join([" --- "] + [" ---: "] * (len(self.header) - 1)) + "|")
        # Brackets around an interval are plain text; in a name they could open a link.
        for row in self.cells:
            texts = [str(cell) if cell.value is not None else _markdown_cell(cell.text) for cell in row]
            lines.append("| " + " | ".join(texts) + " |")
        return "\n".join(lines) + "\n"


def all_tables(findings: Findings) -> list[Table]:
    """Returns the tables that have something to say, in the order of the report."""
    tables = [main(findings), each(findings), beside_paper(findings), differences(findings)]
    for column in findings.leading("forget"):
        for attribute in findings.attributes(column):
            tables.append(per_attribute(findings, column, attribute))
    tables += [tasks(findings, goal) for goal in ("forget", "retain")]
    tables += [
        letters(findings),
        sweep(findings),
        subsets(findings),
        weights(findings),
        *recovery(findings),
        stages(findings),
    ]
    return [table for table in tables if table.cells]


def key_tables(findings: Findings) -> list[Table]:
    """Returns the few tables that a terminal shows: the paper's shapes, and each value of what was split by."""
    tables = [main(findings)]
    split_by = findings.results["split"]["attribute"]
    tables += [
        per_attribute(findings, column, split_by)
        for column in findings.leading("forget")
        if split_by in findings.attributes(column)
    ]
    return [table for table in tables if table.cells]


def main(findings: Findings) -> Table:
    """Variants against suites: the shape of the paper's Tables 1 and 2."""
    few = len(findings.subset_of) <= FEW_SUBSETS
    return _variants(
        "main", "Every variant on what must go and what must stay", findings,
        findings.variants if few else findings.main_variants,
    )  # fmt: skip


def each(findings: Findings) -> Table:
    """The models that unlearned one subset alone, where they would crowd the main table."""
    few = len(findings.subset_of) <= FEW_SUBSETS
    subsets = [name for name in findings.variants if name in findings.subset_of]
    return _variants("each", "The models that unlearned one subset alone", findings, [] if few else subsets)


def _variants(key: str, title: str, findings: Findings, variants: list[str]) -> Table:
    columns = findings.columns
    note = f"Percentages{_but(columns)}. Arrows say which way is better; brackets are 95 % intervals."
    if len(findings.results["provenance"]["seeds"]) == 1:
        note += (
            " They are over the items of one seed: how far another seed would lie is unknown (--seeds 3 runs three)."
        )
    if any(findings.asked_in_part(name) for name in variants):
        note += (
            " Models of one subset were asked what is about it and a random sample of all: their figures here are of "
            "the sample, and they are compared on what both were asked (`ask_subsets: all` asks everything)."
        )
    return Table(
        key,
        title,
        note,
        ["Model + method", *(f"{column.label}\u00a0{column.arrow}" for column in columns)],
        [
            [Cell(titled(name, findings)), *(level(findings.score(name, column), column) for column in columns)]
            for name in variants
        ],
    )


def beside_paper(findings: Findings) -> Table:
    """The paper's own figures beside these, for its experiments."""
    figures = {(one.name, one.variant): one for one in paper.beside(findings)}
    names = list(dict.fromkeys(name for name, _ in figures))
    variants = [name for name in findings.main_variants if name in {variant for _, variant in figures}]
    header = ["Figure"]
    for variant in variants:
        header += [f"{label_of(variant)}: {what}" for what in ("here", "paper", "here − paper")]
    cells = []
    for name in names:
        row = [Cell(name)]
        for variant in variants:
            one = figures.get((name, variant))
            if one is None:
                row += [Cell("—")] * 3
                continue
            here = level(one.row, one.column) if one.row and one.column else number(one.here, 1)
            row += [here, number(one.paper, 2), Cell(signed(one.here - one.paper, 2), one.here - one.paper)]
        cells.append(row)
    return Table(
        "paper",
        "Beside the paper",
        "The paper leaves its exact prompts and averaging open, and its settings cannot all be known: agreement is not "
        "promised, and its figures come without intervals.",
        header,
        cells,
    )


def differences(findings: Findings) -> Table:
    """Paired differences between variants on every headline figure."""
    cells = []
    for a, b in findings.pairs:
        for column in findings.columns:
            row = findings.comparison(a, b, column)
            if row is not None:
                who = Cell(f"{label_of(a)} − {label_of(b)}")
                cells.append([who, Cell(column.label), change(row, column), relative(row), chance(row), count(row)])
    return Table(
        "differences",
        "Paired differences, item by item",
        f"Percentage points{_but(findings.columns)}. ▲ better and ▼ worse beyond chance: the 95 % interval leaves out "
        "zero and p is under 0.05.",
        ["Compared", "On", "Difference", "Relative", "p", "n"],
        cells,
    )


def per_attribute(findings: Findings, column: Column, attribute: str) -> Table:
    """One row an attribute value: what each variant still does there, and whether SPUNGE beats joint."""
    # The question first: base, joint, SPUNGE and how far SPUNGE is ahead; the controls after it.
    first = findings.shown
    last = [name for name in findings.main_variants if name not in first and not findings.runs]
    shown = [(a, b) for a, b in findings.pairs if a in first and b in first and a != JOINT.name]
    pairs = [(a, b) for a, b in shown if b != BASE.name or not findings.runs]
    values = [*findings.attributes(column)[attribute], "macro"]
    cells = []
    for value in values:
        scores = {name: findings.score(name, column, attribute, value) for name in [*first, *last]}
        row = [Cell("mean over values" if value == "macro" else value)]
        row += [level(scores[name], column) for name in first]
        for a, b in pairs:
            compared = findings.comparison(a, b, column, attribute, value)
            row.append(change(compared, column, corrected=True))
        row += [level(scores[name], column) for name in last]
        row.append(count(next((score for score in scores.values() if score), None)))
        cells.append(row)
    header = [attribute, *(f"{label_of(name)}\u00a0{column.arrow}" for name in first)]
    header += [f"{label_of(a)} − {label_of(b)}" for a, b in pairs]
    header += [f"{label_of(name)}\u00a0{column.arrow}" for name in last]
    return Table(
        by_key(column, attribute),
        f"{column.label}, by {attribute}",
        "* the difference stands after Benjamini–Hochberg correction over the values at 5 %.",
        [*header, "n"],
        cells,
    )


def tasks(findings: Findings, goal: str) -> Table:
    """One row a task of the suites that have several."""
    variants = findings.main_variants
    cells = []
    for column in findings.leading(goal):
        names = findings.tasks(column.suite)
        for task in names if len(names) > 1 and column.task is None else []:
            part = replace(column, task=task)
            scores = [findings.score(variant, part) for variant in variants]
            if any(scores):
                row = [Cell(f"{column.suite}: {task or 'all items'}"), *(level(score, part) for score in scores)]
                cells.append([*row, count(next(score for score in scores if score))])
    return Table(
        f"tasks-{goal}",
        "Task by task, what must go" if goal == "forget" else "Task by task, what must stay",
        "Percentages with 95 % intervals.",
        ["Task", *(label_of(variant) for variant in variants), "n"],
        cells,
    )


def letters(findings: Findings) -> Table:
    """Which answers were chosen: a model that always says the same letter scores near chance and knows nothing more."""
    cells = []
    width = 0
    for suite in findings.results["suites"]:
        for variant in findings.main_variants if suite["goal"] == "forget" and not suite["attacks"] else ():
            shares = (suite["letters"] or {}).get(variant)
            if shares:
                width = max(width, len(shares))
                cells.append([Cell(f"{suite['suite']}: {label_of(variant)}"), *(percent(share) for share in shares)])
    return Table(
        "letters",
        "Which answer was chosen",
        "Share of the questions answered with each choice. A model that clings to one scores near chance without "
        "having lost what it knows.",
        ["Suite and variant", *(chr(ord("A") + index) if index < 26 else str(index + 1) for index in range(width))],
        [[*row, *[Cell("—")] * (width + 1 - len(row))] for row in cells],
    )


def sweep(findings: Findings) -> Table:
    """Every setting that a sweep tried, as it did on the validation part, and which was picked."""
    section = findings.results["sweep"] or {"axes": {}, "rule": "", "points": []}
    several = len({point["seed"] for point in section["points"]}) > 1
    cells = [
        [
            Cell(label_of(point["variant"]) + (f", seed {point['seed']}" if several else "")),
            *(Cell(str(point["settings"].get(axis, "—"))) for axis in section["axes"]),
            percent(point["forget"]),
            percent(point["retain"]),
            Cell("picked" if point["picked"] else "on the front" if point["front"] else ""),
        ]
        for point in section["points"]
    ]
    return Table(
        "sweep",
        "Every setting that was tried",
        f"Shares of the base model's score on the validation part. Picked: {section['rule']}.",
        ["Model", *section["axes"], "Left of what must go", "Kept of what must stay", ""],
        cells,
    )


def weights(findings: Findings) -> Table:
    """What each subset counts for in a merge whose weights were fitted, and what that did on the validation part."""
    fits = findings.results.get("weights", [])
    several = len({fit["seed"] for fit in fits}) > 1
    cells = []
    for fit in fits:
        best = next(trial for trial in fit["trials"] if trial["weights"] == fit["weights"])
        worst = max(best["left"], key=best["left"].__getitem__, default="—")
        cells.append([
            Cell(label_of(fit["variant"]) + (f", seed {fit['seed']}" if several else "")),
            Cell(", ".join(f"{label_of(name)} {weight:.2f}" for name, weight in fit["weights"].items())),
            percent(fit["trials"][0]["worst"]), percent(best["worst"]), Cell(worst), Cell(str(len(fit["trials"]))),
        ])  # fmt: skip
    rule = fits[0]["rule"] if fits else ""
    return Table(
        "weights",
        "What each subset counts for",
        f"Chosen on the validation part, which no other table shows: {rule}. Shares of the base model's score.",
        ["Model", "Weights", "Most left, equal weights", "Most left, these", "Of which group", "Tried"],
        cells,
    )


def recovery(findings: Findings) -> list[Table]:
    """What attacks brought back, overall and by value: the share of what unlearning had taken."""
    overall: list[list[Cell]] = []
    by_value: list[list[Cell]] = []
    split_by = findings.results["split"]["attribute"]
    for row in findings.results["attacks"]:
        listed = row["variant"] in findings.main_variants and begun(row["setting"])
        if not listed or row["attribute"] not in (None, split_by):
            continue
        column = findings.column(row["attacks"], row["task"], row["metric"], row["goal"])
        where = " · ".join(name for name in (row["task"], row["attribute_value"]) if name)
        share = Cell("—")
        if row["returned"] is not None:
            text = f"{signed(row['returned'] * 100, 0).lstrip('+')} %"
            share = _ranged(text, row["returned"], ends_of(row, "returned"), 100, 0)
        scores = [_level(row[name], ends_of(row, name), column) for name in ("unlearned", "attacked")]
        cells = overall if row["attribute"] is None else by_value
        cells.append([Cell(f"{row['suite']}: {row['setting']}"), Cell(where), Cell(label_of(row["variant"])),
                      *scores, share, Cell(str(row["n"]), row["n"])])  # fmt: skip
    title = "What attacks brought back"
    note = (
        "Recovered: the share of what unlearning took that the attack brought back, 0 % nothing, 100 % all, with its "
        "95 % interval; — where unlearning took nothing beyond chance. Where there is an oracle, it is of what that "
        "lacks, and on top of what was never gone."
    )
    header = ["Attack", "On", "Model", "Before", "After", "Recovered", "n"]
    return [
        Table("recovery", title, note, header, overall),
        Table("recovery-values", f"{title}, by {split_by}", note, header, by_value),
    ]


def subsets(findings: Findings) -> Table:
    """The subsets of the forget set, and what merging made of each one's task vector."""
    split = findings.results["split"]
    merges = findings.results["provenance"]["merge"]
    overall = next((each.get("overall") or {} for each in merges.values() if each), {})
    cells = []
    vectors = reversed(findings.results["provenance"]["task_vectors"])  # the first seed's stands
    steps = {row["name"]: row["steps"] for row in vectors}
    for subset in split["subsets"]:
        norm, surviving, coverage = (
            (overall.get(name) or {}).get(subset["name"]) for name in ("norms", "kept", "coverage")
        )
        row = [
            Cell(subset["name"]),
            number(subset["rows"], 0),
            number(steps.get(SUBSET + subset["name"]), 0),
            number(norm, 3),
        ]
        cells.append([*row, percent(surviving), percent(coverage)])
    for subset in split["dropped"]:
        name = f"{subset['name']} (left out: {subset['reason']})"
        cells.append([Cell(name), number(subset["rows"], 0), *[Cell("—")] * 4])
    return Table(
        "subsets",
        f"The forget set, split by {split['attribute']}" if split["attribute"] else "The forget set, split",
        "Kept: entries of the subset's task vector that trimming left. In the merge: how much of the subset's own "
        "removal the merged task vector holds (its projection); 100 % is all of it.",
        ["Subset", "Rows", "Steps", "Norm", "Kept", "In the merge"],
        cells,
    )


def stages(findings: Findings) -> Table:
    """Time and memory of every piece of work."""
    cells = []
    for stage in findings.work:
        memory = stage["peak_memory"]
        cells.append(
            [
                Cell(f"{stage['stage']}: {stage['name'] or stage['stage']}"),
                number(stage["seed"], 0),
                Cell(stage["status"] or "—"),
                number(stage["seconds"], 1),
                number(None if memory is None else memory / 2**20, 0),
                Cell((stage["key"] or "—")[:12]),
            ]
        )
    return Table(
        "stages",
        "Time and memory of every stage",
        "Each piece of work once, however many variants it serves. What is reused took its time in an earlier run.",
        ["Stage", "Seed", "Status", "Seconds", "Peak memory (MiB)", "Key"],
        cells,
    )


METHODS = {"rmu": "RMU", "adaptive_rmu": "adaptive RMU", "task_vector_negation": "TVN", "npo": "NPO", "dpo": "DPO"}


def titled(variant: str, findings: Findings) -> str:
    """Returns a variant's name as the paper's tables have it: the model, then + method, + SPUNGE-method."""
    provenance = findings.results["provenance"]
    method = provenance["method"]
    short = METHODS.get(method or "", (method or "").replace("_", " "))
    if variant == BASE.name:
        return provenance["model"]["id"].rstrip("/").rsplit("/", 1)[-1]
    if findings.runs:
        return f"+ {variant}"
    split = variant in ROLES and ROLES[variant].split
    made = "-".join(part for part in (MERGED.label if split else "", short) if part)
    return "+ " + ", ".join(part for part in (made, "" if variant == MERGED.name else label_of(variant)) if part)


def by_key(column: Column, attribute: str) -> str:
    """Returns the key of a per-attribute table."""
    return slug("by", column.suite, column.task or "", attribute)


def slug(*parts: str) -> str:
    """Returns a name that is safe in a file name and an id; a hash tells apart what looks alike."""
    text = "-".join(part for part in parts if part)
    safe = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:48]
    return safe if safe == text else f"{safe or 'x'}-{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:6]}"


def level(score: Score | None, column: Column) -> Cell:
    """Returns the cell of a score with its interval."""
    return Cell("—") if score is None else _level(score.value, score.ends, column)


def _level(value: float | None, ends: Ends | None, column: Column) -> Cell:
    if value is None:
        return Cell("—")
    factor = _factor(column)
    digits = _digits(ends, factor)
    return _ranged(f"{value * factor:.{digits}f}", value, ends, factor, digits)


def _digits(ends: Ends | None, factor: float) -> int:
    return decimals(ends[0] * factor, ends[1] * factor) if ends else 1


def ends_of(row: Mapping[str, Any], name: str) -> Ends | None:
    """Returns the interval of one of an attack row's figures."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return None if low is None or high is None else (low, high)


def change(row: Comparison | None, column: Column, *, corrected: bool = False) -> Cell:
    """Returns the cell of a difference; its tone says whether it stands, its star whether after correction."""
    if row is None:
        return Cell("—")
    factor = _factor(column)
    digits = _digits(row.ends, factor)
    tone = {1: "better", 0: "", -1: "worse"}[improvement(row, column)]
    mark = {"better": "▲ ", "worse": "▼ ", "": ""}[tone]
    star = "*" if corrected and row.q is not None and row.q < 0.05 else ""
    text = f"{mark}{signed(row.difference * factor, digits)}{star}"
    return replace(_ranged(text, row.difference, row.ends, factor, digits, sign=True), tone=tone)


def relative(row: Comparison) -> Cell:
    """Returns the cell of a relative difference in per cent."""
    if row.relative is None:
        return Cell("—")
    digits = _digits(row.relative_ends, 100)
    return _ranged(f"{signed(row.relative * 100, digits)} %", row.relative, row.relative_ends, 100, digits, sign=True)


def chance(row: Comparison) -> Cell:
    """Returns the cell of a p-value."""
    if row.p is None:
        return Cell("—")
    return Cell("< 0.001" if row.p < 0.001 else f"{row.p:.3f}", row.p)


def count(row: Score | Comparison | None) -> Cell:
    """Returns the cell of a number of items."""
    return Cell("—") if row is None else Cell(str(row.n), row.n)


def number(value: float | None, digits: int) -> Cell:
    """Returns the cell of a plain number."""
    return Cell("—") if value is None else Cell(f"{value:.{digits}f}", value)


def percent(value: float | None) -> Cell:
    """Returns the cell of a share."""
    return Cell("—") if value is None else Cell(f"{value * 100:.1f} %", value)


def signed(value: float, digits: int) -> str:
    """Writes a difference with its sign, a true minus; what rounds to zero has none."""
    text = f"{value:+.{digits}f}"
    return text.replace("-", "−") if float(text) else text[1:]


def decimals(low: float, high: float) -> int:
    """Returns how many decimals of a figure its interval lets stand, by the Particle Data Group's rule.

    Half the interval is written with two digits where its first three lie between 100 and 354, else with one, and the
    figure as far as that: 68.3 [66.1, 70.5], 68 [62, 74].
    """
    half = abs(high - low) / 2
    if not isfinite(half) or half == 0:
        return 1
    power = floor(log10(half))
    return max(0, -power + (1 if half / 10**power <= 3.545 else 0))


def _factor(column: Column) -> float:
    return 100.0 if column.share else 1.0


def _ranged(text: str, value: float, ends: Ends | None, factor: float, digits: int, *, sign: bool = False) -> Cell:
    """A cell with its interval; differences are written with their sign."""
    if ends is None:
        return Cell(text, value)
    write = signed if sign else (lambda value, places: f"{value:.{places}f}".replace("-", "−"))
    return Cell(text, value, *ends, f"[{write(ends[0] * factor, digits)}, {write(ends[1] * factor, digits)}]")


def _but(columns: Sequence[Column]) -> str:
    """Which of the columns are no percentages, for the note of a table."""
    others = dict.fromkeys(column.metric.head for column in columns if not column.share)
    return f", but for {' and '.join(others)}" if others else ""


_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$"}
_LATEX |= {"±": r"$\pm$", "▲": r"$\blacktriangle$", "▼": r"$\blacktriangledown$", "↑": r"$\uparrow$"}
_LATEX |= {"↓": r"$\downarrow$", **{char: "\\" + char for char in "&%$#_{}"}}


def _latex(text: str) -> str:
    # A cell that opens with a bracket would be read as an argument of the line before it.
    return "{}" + escaped if (escaped := "".join(_LATEX.get(c, c) for c in plain(text))).startswith("[") else escaped


# Where a cell begins: also behind what parts cells in another locale, or at the next line. Wide signs count as theirs.
_FORMULA = re.compile("(^|[;\t\r\n])([^\\S\t\r\n]*)(?=[-=+@\t\r\uff0b\uff0d\uff1d\uff20])")


def _no_formula(text: str) -> str:
    return _FORMULA.sub(r"\1'\2", text)


def _markdown_cell(text: str) -> str:
    """Escapes a cell, a formula's first sign too, which shows all the same: tables are pasted into spreadsheets."""
    return re.sub("^(\\s*)([-=+@\uff0b\uff0d\uff1d\uff20])", r"\1\\\2", escape_markdown(text))


def escape_markdown(text: str) -> str:
    """Escapes what Markdown would read as markup."""
    return re.sub(r"([\\`*_{}\[\]<>|#$])", r"\\\1", plain(text))


def plain(text: str) -> str:
    """Puts text on one line and makes control characters and direction overrides visible."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", _visible, text)


def _visible(match: re.Match[str]) -> str:
    char = match.group()
    return " " if char in "\n\r\t" else f"⟨U+{ord(char):04X}⟩"

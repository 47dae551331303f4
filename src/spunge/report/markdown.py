"""`results.md`: the verdict and the tables for a terminal, a pull request or a model card."""

from __future__ import annotations

import json
import re

from spunge.report.findings import Findings
from spunge.report.tables import Table, escape_markdown, plain
from spunge.report.verdict import Verdict

_MARKS = {"good": "✓", "bad": "✗", "unsure": "?"}


def render(findings: Findings, judged: Verdict, tables: list[Table]) -> str:
    """Returns the report as Markdown."""
    results = findings.results
    provenance = results["provenance"]
    lines = [f"# {escape_markdown(results['experiment'])}", "", f"**{judged.headline}**", ""]
    lines += [f"- {_MARKS[point.status]} {escape_markdown(point.text)} {point.figures}." for point in judged.points]
    for problem in provenance["missing"]:
        lines.append(f"- ! {escape_markdown(problem)}")
    for table in tables:
        lines += ["", f"## {escape_markdown(table.title)}", "", table.to_markdown().rstrip()]
        if table.note:
            lines += ["", table.note]
    lines += ["", "## Where this comes from", ""]
    facts = {
        "command": provenance["command"],
        "model": provenance["model"]["id"],
        "model digest": provenance["model"]["digest"],
        "seeds": ", ".join(map(str, provenance["seeds"])),
        "spunge": provenance["spunge"],
        **provenance["environment"],
    }
    lines += [f"- {escape_markdown(name)}: {escape_markdown(str(fact))}" for name, fact in facts.items() if fact]
    notes = {"Warning": provenance["warnings"], "Not run": provenance["not_run"]}
    lines += [f"- {kind}: {escape_markdown(note)}" for kind, texts in notes.items() for note in texts]
    if provenance["recipe"]:
        lines += ["", *_fenced(provenance["recipe"])]
    return "\n".join(lines) + "\n"


def model_card(findings: Findings, judged: Verdict, tables: list[Table]) -> str:
    """Returns a model card in the hub's format: what was done, whether it worked, and what it does not promise."""
    results = findings.results
    provenance = results["provenance"]
    base = provenance["model"]["id"]
    front = ["---", f"base_model: {_quoted(base)}", "library_name: transformers", "tags: [unlearning, spunge]", "---"]
    lines = [*front, "", f"# {escape_markdown(results['experiment'])}", ""]
    split_by = results["split"]["attribute"]
    by = f" by {escape_markdown(split_by)}" if split_by else ""
    lines += [
        f"{escape_markdown(base)} with some of its behaviour unlearned by Spunge: the forget set was split{by}, each "
        "subset was unlearned from the base model apart, and the results were merged.",
        "",
        f"**{judged.headline}**",
        "",
        *(f"- {_MARKS[point.status]} {escape_markdown(point.text)} {point.figures}." for point in judged.points),
    ]
    for table in tables:
        lines += ["", f"## {escape_markdown(table.title)}", "", table.to_markdown().rstrip(), "", table.note]
    lines += [
        "",
        "## Limits",
        "",
        "- What no longer shows may still be there: attacks, quantisation or further training can bring it back.",
        "- The figures hold for these questions and prompts, in this language; nothing is promised for others.",
        *(f"- Not run: {escape_markdown(note)}" for note in provenance["not_run"]),
    ]
    if provenance["recipe"]:
        lines += ["", "## Recipe", "", *_fenced(provenance["recipe"])]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return json.dumps(plain(text))


def _fenced(recipe: str) -> list[str]:
    longest = max((len(run) for run in re.findall("`+", recipe)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}yaml", *map(plain, recipe.splitlines()), fence]

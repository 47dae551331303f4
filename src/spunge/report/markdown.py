"""`results.md`: the verdict and the tables for a terminal, a pull request or a model card."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from spunge.files import is_local
from spunge.report.closing import closing
from spunge.report.findings import Findings
from spunge.report.tables import Table, escape_markdown, plain
from spunge.report.verdict import Verdict
from spunge.variants import MERGED, SUBSET, label_of, phrase_of

_MARKS = {"good": "✓", "bad": "✗", "unsure": "?"}
_ROWS = 12
"""Of a table on the one page; the report has them all."""


def render(findings: Findings, judged: Verdict, tables: Sequence[Table]) -> str:
    """Returns a page of Markdown: verdict, contests, warnings, the main tables and where it comes from.

    What is beyond a page is on the page of the report, and in `results.json`.
    """
    results = findings.results
    provenance = results["provenance"]
    lines = [
        f"# {escape_markdown(results['experiment'])}",
        "",
        f"**{escape_markdown(judged.headline)}**",
        "",
        *_verdict(judged, findings),
    ]
    lines += [f"- ! {escape_markdown(problem)}" for problem in provenance["missing"]]
    for table in tables:
        lines += ["", f"## {escape_markdown(table.title)}", "", *_first_rows(table)]
    facts = {
        "command": provenance["command"],
        "model": provenance["model"]["id"],
        "model digest": provenance["model"]["digest"],
        "seeds": ", ".join(map(str, provenance["seeds"])),
        "spunge": provenance["spunge"],
    }
    lines += ["", "## Where this comes from", ""]
    lines += [f"- {escape_markdown(name)}: {escape_markdown(str(fact))}" for name, fact in facts.items() if fact]
    lines += _noted("Warning", provenance["warnings"]) + _noted("Not run", provenance["not_run"])
    lines += ["", "All tables and figures are in index.html, every figure in results.json, the recipe in recipe.yaml."]
    return "\n".join(lines) + "\n"


_FORMS = {
    "checkpoint": ("transformers", "A checkpoint: transformers' `AutoModelForCausalLM.from_pretrained` loads it."),
    "adapter": (
        "peft",
        "An adapter, to be loaded onto {base}: `PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({path})"
        ", DIRECTORY)`. It is exact where the change has the adapter's rank; the export says how much of it is kept.",
    ),
    "task-vector": (
        "spunge",
        "A task vector, what to add to the weights of {base}: `spunge export --model {path} --task-vector DIRECTORY "
        "--out NEW` makes a checkpoint of both.",
    ),
}
"""What can be exported → the library that loads it, and how."""


def front_matter(base: str, form: str = "checkpoint") -> str:
    """Returns the head of a model card: what the hub reads of it, and below that how the files are loaded.

    Args:
        base: The base model's id; the hub is told of it where it can have it.
        form: What the files are: `checkpoint`, `adapter` or `task-vector`.
    """
    library, loaded = _FORMS[form]
    path = f'spunge.load("{base}").directory()' if base.startswith("lab:") else json.dumps(base)
    named = [] if is_local(base) else [f"base_model: {json.dumps(plain(base))}"]
    head = ["---", *named, f"library_name: {library}", "tags: [unlearning, spunge]", "---"]
    told = loaded.format(base=escape_markdown(base), path=path)
    return "\n".join([*head, "", told])


def model_card(
    findings: Findings,
    judged: Verdict,
    tables: Sequence[Table],
    variant: str = MERGED.name,
    form: str = "checkpoint",
) -> str:
    """Returns a model card in the hub's format: whether it worked, what to be warned of, what was done, and how.

    Args:
        findings: Of the run.
        judged: Its verdict.
        tables: The main ones.
        variant: Whose card it is; the verdict is on the merged model, and the card of another says so.
        form: What it lies beside; see `front_matter`.
    """
    results = findings.results
    provenance = results["provenance"]
    base = provenance["model"]["id"]
    lines = [
        front_matter(base, form),
        "",
        f"# {escape_markdown(results['experiment'])}",
        "",
    ]
    if variant != MERGED.name:
        lines += [
            f"**This is “{escape_markdown(label_of(variant))}” of the run, not its merged model.** The tables have it "
            "by this name; the verdict below is on the merged model, SPUNGE.",
            "",
        ]
    lines += [f"**{escape_markdown(judged.headline)}**", ""]
    lines += _verdict(judged, findings) + _noted("Warning", provenance["warnings"])
    split_by = results["split"]["attribute"]
    by = f" by {escape_markdown(split_by)}" if split_by else ""
    lines += [
        "",
        f"{escape_markdown(base)} with some of its behaviour unlearned by Spunge{_how(variant, by)}.",
        "",
        "## What it rests on",
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
        *_noted("Not run", provenance["not_run"]),
    ]
    if provenance["recipe"]:
        lines += ["", "## Recipe", "", *_fenced(provenance["recipe"])]
    return "\n".join(lines) + "\n"


def _how(variant: str, by: str) -> str:
    """What was done to get this variant, as the rest of a sentence."""
    if variant == MERGED.name:
        return (
            f": the forget set was split{by}, each subset was unlearned from the base model apart, and the results "
            "were merged"
        )
    if variant.startswith(SUBSET):
        name = escape_markdown(variant.removeprefix(SUBSET))
        return f": the forget set was split{by}, and of its subsets “{name}” alone was unlearned"
    return f": it is the run's {escape_markdown(phrase_of(variant))}, with which the merged model is compared"


def _verdict(judged: Verdict, findings: Findings) -> list[str]:
    """What follows the headline: three numbers, and a line a rival or, of several runs, the points."""
    lines = closing(findings, judged)[1:]
    return [f"- {_MARKS[line.status]} {escape_markdown(line.text)}" for line in lines if line.status]


def _noted(kind: str, notes: Sequence[str]) -> list[str]:
    return [f"- {kind}: {escape_markdown(note)}" for note in notes]


def _first_rows(table: Table) -> list[str]:
    lines = table.to_markdown().rstrip().splitlines()
    shown = lines[: _ROWS + 2]  # the head and the line under it
    return shown + (["", f"… and {len(lines) - len(shown)} more rows."] if len(shown) < len(lines) else [])


def _fenced(recipe: str) -> list[str]:
    longest = max((len(run) for run in re.findall("`+", recipe)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}yaml", *map(plain, recipe.splitlines()), fence]

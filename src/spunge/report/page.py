"""The page: one self-contained HTML file that answers a reader's questions in order and asks nothing of the network."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from spunge.files import format_bytes, format_duration
from spunge.report import figures as draw
from spunge.report import glance, insides, robustness
from spunge.report.artifacts import Run, curves
from spunge.report.closing import Line, contest_lines
from spunge.report.drawing import MANY, Figure
from spunge.report.explorer import pack
from spunge.report.findings import Findings
from spunge.report.points import BAD, GOOD, UNSURE
from spunge.report.tables import Table, by_key, plain
from spunge.report.verdict import Verdict
from spunge.variants import MERGED, ROLES, SUBSET

_HERE = Path(__file__).parent


NOTICED = 1e-6
"""Less than this share of the task vector's energy lost in rounding is not worth a sentence."""


@dataclass(frozen=True)
class Block:
    """A part of a section: figures side by side, a table, a command or a sentence."""

    figures: Sequence[Figure] = ()
    table: Table | None = None
    open: bool = True
    code: str = ""
    text: str = ""


@dataclass(frozen=True)
class Section:
    """The answer to one question."""

    id: str
    short: str
    title: str
    lead: str = ""
    blocks: Sequence[Block] = field(default_factory=list)


_NO_ATTACK = (
    "No attack was tried in this run. A model that no longer answers may still know: quantising it, or tuning it on a "
    "few examples, has brought knowledge back elsewhere."
)


def render(run: Run, findings: Findings, judged: Verdict, tables: Sequence[Table]) -> tuple[str, list[Figure]]:
    """Returns the page, and the figures in it."""
    sections = [section for section in _sections(run, findings, tables) if section.blocks]
    explorer = pack(run, findings)
    contents = [("verdict", "Verdict"), *((section.id, section.short) for section in sections)]
    contents += [("items", "Items")] if explorer else []
    (style, style_hash), script = style_and_hash(), (_HERE / "page.js").read_text(encoding="utf-8")
    page = environment().from_string((_HERE / "page.html.j2").read_text(encoding="utf-8")).render(
        results=findings.results,
        verdict=judged,
        contests=contest_lines(judged) or [Line(f"{one.text} {one.figures}.", one.status) for one in judged.points],
        setting=glance.setting(findings),
        trust=glance.trust(findings),
        sections=sections,
        contents=[*contents, ("provenance", "Provenance")],
        explorer=explorer,
        facts=_facts(findings.results),
        origin=_origin(run),
        downloads=downloads,
        marks={GOOD: "✓", BAD: "✗", UNSURE: "?"},
        spoken={GOOD: "Borne out", BAD: "Spoken against", UNSURE: "Not settled"},
        style=Markup(style),
        script=Markup(script),
        style_hash=style_hash,
        script_hash=_digest(script),
    )  # fmt: skip
    return page, [figure for section in sections for block in section.blocks for figure in block.figures]


def style_and_hash() -> tuple[str, str]:
    """Returns the page's styles, and what a content-security-policy knows them by."""
    style = (_HERE / "page.css").read_text(encoding="utf-8")
    style = style.replace("/* variants */", _colours(dark=False)).replace("/* variants, dark */", _colours(dark=True))
    return style, _digest(style)


def environment() -> Environment:
    """Returns what fills a page's template: everything is escaped, and no text can turn its direction."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    environment.filters |= {"plain": plain, "lines": lambda text: "\n".join(map(plain, text.splitlines())),
                            "breakable": lambda text: Markup("_<wbr>").join(text.split("_"))}  # fmt: skip
    return environment


def downloads(table: Table) -> list[tuple[tuple[str, str], str]]:
    """Returns the table as links that hold their own file: ((file name, kind), link)."""
    kinds = (
        ("csv", "CSV", "text/csv", table.to_csv()),
        ("tex", "LaTeX", "application/x-tex", table.to_latex()),
        ("md", "Markdown", "text/markdown", table.to_markdown()),
    )
    return [
        (
            (f"{table.key}.{suffix}", name),
            f"data:{mime};base64,{base64.b64encode(content.encode('utf-8', 'replace')).decode()}",
        )
        for suffix, name, mime, content in kinds
    ]


def _sections(run: Run, findings: Findings, tables: Sequence[Table]) -> list[Section]:
    shelf = {table.key: table for table in tables}
    diagnostics: Mapping[str, Any] = next(iter(findings.results["provenance"]["merge"].values()), None) or {}
    return [
        Section("audit", "Audit", "What do the models come to?", "Each beside the base model.", _table(shelf, "audit")),
        Section("forget", "Forgot?", "Did it forget?", "What every variant still does of what must go.",
                _forgot(findings, shelf)),
        Section("keep", "Kept?", "Did it keep the rest?", "What is gone against what is kept.",
                [*_pictures(draw.curve(findings), draw.trade_off(findings), draw.retained(findings),
                            draw.sweep(findings)),
                 *_table(shelf, "sweep", open=False), *_table(shelf, "tasks-retain", open=False)]),
        Section("better", "Better?", _better_title(findings),
                "All answered the same items and are compared item by item, which tells a small difference from "
                "chance.",
                [*_table(shelf, "settings"), *_pictures(draw.contest(findings)),
                 *_table(shelf, "differences", open=False)]),
        Section("merge", "Merge", "What did the merge do?", _met(diagnostics),
                _merged(run, findings, diagnostics, shelf)),
        Section("attack", "Attacks", "What would an attacker get back?", "", _attacked(findings, shelf)),
        Section("cost", "Cost", "What did it cost?", _spent(findings),
                [*_pictures(insides.costs(findings)), *_table(shelf, "stages", open=False)]),
        Section("use", "Use it", "How do I use the model?", "", _usage(run)),
    ]  # fmt: skip


def _better_title(findings: Findings) -> str:
    return (
        "Is one better than another?"
        if findings.runs or findings.audited
        else "Is SPUNGE better than joint unlearning?"
    )


def _forgot(findings: Findings, shelf: Mapping[str, Table]) -> list[Block]:
    blocks = [*_table(shelf, "main"), *_table(shelf, "each", open=False), *_table(shelf, "paper")]
    for suite in findings.suites:
        blocks += _table(shelf, f"judged-{suite}")
    split_by = findings.results["split"]["attribute"]
    for column in findings.leading("forget"):
        for number, (attribute, values) in enumerate(findings.attributes(column).items()):
            if 1 < len(values) <= MANY:
                leads = attribute == split_by or number == 0
                blocks += _pictures(
                    draw.radar(findings, column, attribute) if leads else None,
                    draw.dots(findings, column, attribute),
                    draw.erased(findings, column, attribute) if leads else None,
                )
            blocks += _table(shelf, by_key(column, attribute), open=attribute == split_by)
    return [*blocks, *_table(shelf, "tasks-forget", open=False), *_table(shelf, "letters", open=False)]


def _merged(run: Run, findings: Findings, diagnostics: Mapping[str, Any], shelf: Mapping[str, Table]) -> list[Block]:
    return [
        *_table(shelf, "subsets"),
        *_table(shelf, "weights"),
        *_pictures(insides.cosines(diagnostics), insides.coverage(diagnostics), insides.drift(diagnostics)),
        *_pictures(insides.training(findings, _curves(run))),
        *_table(shelf, "search", open=False),
    ]


def _attacked(findings: Findings, shelf: Mapping[str, Table]) -> list[Block]:
    heats = [draw.brought_back(*one) for one in robustness.heat(findings)]
    curves = [
        draw.attacked(findings, attack, column, rows)
        for (attack, column), rows in findings.attacks.items()
        if any("steps" in row["setting"] for row in rows)
    ]
    blocks = [*_table(shelf, "robustness"), *_table(shelf, "robustness-values", open=False)]
    blocks += [*_pictures(*heats, *curves), *_table(shelf, "recovery", open=False)]
    blocks += [*_table(shelf, "recovery-values", open=False), *_table(shelf, "robustness-beside", open=False)]
    blocks += _table(shelf, "membership", open=False)
    return blocks or [Block(text=_NO_ATTACK)]


def _table(shelf: Mapping[str, Table], key: str, *, open: bool = True) -> list[Block]:
    return [Block(table=shelf[key], open=open)] if key in shelf else []


def _pictures(*figures: Figure | None) -> list[Block]:
    """Figures two abreast, the wide ones alone."""
    drawn = [figure for figure in figures if figure is not None]
    narrow = [figure for figure in drawn if not figure.wide]
    rows = [*(narrow[at : at + 2] for at in range(0, len(narrow), 2)), *([figure] for figure in drawn if figure.wide)]
    return [Block(figures=row) for row in rows]


def _met(diagnostics: Mapping[str, Any]) -> str:
    overall = diagnostics.get("overall") or {}
    conflict, ratio = overall.get("sign_conflict"), overall.get("norm_ratio")
    text = "How the subsets' task vectors met."
    if conflict is not None:
        text += (
            f" On {100 * conflict:.0f}\u00a0% of the entries that any of them still changes after the trim, two pull "
            "in opposite directions"
        )
        chance = overall.get("sign_conflict_by_chance")
        text += "." if chance is None else f"; signs drawn at random would on {100 * chance:.0f}\u00a0%."
    if ratio is not None:
        text += f" The merged task vector is {ratio:.2f} times as long as theirs are on average."
    lost = diagnostics.get("rounding")
    if lost and lost >= NOTICED:
        text += f" Rounded to the base model's number format, it loses {100 * lost:.2g}\u00a0% of its energy."
    return text


def _spent(findings: Findings) -> str:
    stages = findings.results["provenance"]["stages"]
    if not stages:
        return ""
    computed = sum(stage["status"] == "computed" for stage in stages)
    seconds = sum(stage["seconds"] or 0 for stage in stages)
    memory = max((stage["peak_memory"] or 0 for stage in stages), default=0)
    text = f"{len(stages)} stages, " + (
        "all computed in this run; " if computed == len(stages) else
        f"{computed} computed in this run and {len(stages) - computed} taken from the store; "
    )  # fmt: skip
    text += f"{format_duration(seconds)} of work in all"
    return text + (f", at most {format_bytes(memory)} of memory at once." if memory else ".")


_LOADING = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("unlearned")
tokenizer = AutoTokenizer.from_pretrained("unlearned")"""


def _usage(run: Run) -> list[Block]:
    if not any(variant.name == MERGED.name and variant.task_vector for variant in run.manifest.variants):
        return []
    export = ["spunge", "export", run.path.as_posix(), "--out", "unlearned"]
    blocks = [
        Block(
            text="This writes the merged model as a checkpoint, with a model card that holds the verdict, the tables "
            "and the recipe:"
        ),
        Block(code=shlex.join(export)),
        Block(text="and load that like any other model:"),
        Block(code=_LOADING),
    ]
    if run.manifest.command:
        blocks += [Block(text="This command repeats the run:"), Block(code=run.manifest.command)]
    return blocks


def _curves(run: Run) -> dict[str, list[dict[str, float]]]:
    first = min((stage.seed for stage in run.manifest.stages if stage.seed is not None), default=None)
    return {
        stage.name: curves(run, stage)
        for stage in run.manifest.stages
        if stage.stage == "unlearn" and stage.seed in (None, first)
        # The parts of the random split would only crowd the figure.
        if stage.name in ROLES or stage.name.startswith(SUBSET)
    }


def _facts(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    provenance = results["provenance"]
    facts = {
        "Command": provenance["command"],
        "Model": provenance["model"]["id"],
        "Revision": provenance["model"]["revision"],
        "Model's digest": provenance["model"]["digest"],
        "Forget set's digest": results["split"].get("digest"),
        "Seeds": ", ".join(map(str, provenance["seeds"])),
        "spunge": provenance["spunge"],
        **{str(name): fact for name, fact in provenance["environment"].items()},
    }
    return [(name, str(fact)) for name, fact in facts.items() if fact not in (None, "")]


def _origin(run: Run) -> str:
    """Returns the footer's line: when, by which Spunge, on which data and model.

    The date is that of the answers, so that the same run gives the same page whenever it is written again.
    """
    manifest, answers = run.manifest, run.path / "items.parquet"
    when = datetime.fromtimestamp(answers.stat().st_mtime) if answers.is_file() else None
    commit = manifest.environment.get("commit")
    parts = [
        f"Answers of {when:%-d %B %Y}" if when else "",
        f"Spunge {manifest.version}{f', commit {commit}' if commit else ''}" if manifest.version else "",
        f"model {manifest.model.digest[:12]}" if manifest.model.digest else "",
        f"forget set {manifest.split.digest[:12]}" if manifest.split.digest else "",
    ]
    return " · ".join(part for part in parts if part)


def _colours(*, dark: bool) -> str:
    """The CSS variables of the variants' colours."""
    return " ".join(f"{role.css}: {role.dark if dark else role.colour};" for role in ROLES.values())


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

"""The figures that the paper printed (its Tables 1 to 7), to stand beside a run of the same experiment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from ruamel.yaml import YAML

from spunge.report.findings import Column, Findings
from spunge.report.rows import Score

AVERAGES = ("Average acc.", "Average")


@dataclass(frozen=True)
class Beside:
    """One figure of the paper with this run's own, both on the paper's scale."""

    name: str
    variant: str
    paper: float
    here: float
    column: Column | None
    """Where this run's figure is from; None for a mean of several."""
    row: Score | None
    """Its score, with the interval; None for a mean of several."""


def beside(findings: Findings) -> list[Beside]:
    """Returns every figure that both the paper and this run have, in the paper's order."""
    first: dict[tuple[str, str], Beside] = {}
    for table in _tables(findings).values():
        for variant, figures in table["rows"].items():
            for name, figure in figures.items():
                if variant in findings.main_variants and (one := _one(findings, variant, name, figure)):
                    # The average of the ten is printed twice, once rounded otherwise.
                    first.setdefault(("Average" if name in AVERAGES else name, variant), one)
    return [*first.values()]


@cache
def published() -> Mapping[str, Any]:
    """Returns all that the paper printed, and which figure of a run stands beside which."""
    file = resources.files("spunge.recipe") / "shipped" / "paper_results.yaml"
    return YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))


def _tables(findings: Findings) -> dict[str, Any]:
    """The tables of this experiment: by its recipe's name, or else by model and method."""
    tables = published()["tables"]
    experiment = str(findings.results["experiment"])
    named = {name: table for name, table in tables.items() if any(experiment.startswith(r) for r in table["recipes"])}
    if named:
        return named
    provenance = findings.results["provenance"]
    short = provenance["model"]["id"].rstrip("/").rsplit("/", 1)[-1].lower().removesuffix("-hf")
    used = {"model": short, "method": provenance["method"]}
    return {name: table for name, table in tables.items() if table.get("of") == used}


def _one(findings: Findings, variant: str, name: str, paper: float) -> Beside | None:
    if name in AVERAGES:
        scores = [_score(findings, variant, each) for each in published()["averaged"]]
        values = [score[1] for score in scores if score]
        complete = len(values) == len(scores)
        return Beside(name, variant, paper, sum(values) / len(values), None, None) if complete else None
    score = _score(findings, variant, name)
    return Beside(name, variant, paper, score[1], score[0], score[2]) if score else None


def _score(findings: Findings, variant: str, name: str) -> tuple[Column, float, Score] | None:
    wanted = published()["columns"][name]
    suites = wanted["suite"] if isinstance(wanted["suite"], list) else [wanted["suite"]]
    for suite in suites:
        if suite in findings.suites and (tasks := findings.tasks(suite)):
            column = findings.column(suite, tasks[0], wanted["metric"])
            if (row := findings.score(variant, column)) is not None:
                return column, row.value * (1.0 if wanted["metric"] == "perplexity" else 100.0), row
    return None

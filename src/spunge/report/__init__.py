"""The report of a run: results, tables, figures and one page, from artifacts alone."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spunge.errors import ArtifactError
from spunge.files import checksum, replace_text, state_of
from spunge.report import artifacts, audit, comparing, differing, judges, results, robustness, search
from spunge.report.closing import Line, closing
from spunge.report.findings import Findings
from spunge.report.tables import Table, all_tables, key_tables
from spunge.report.verdict import Verdict, verdict
from spunge.rows.items import JOURNAL
from spunge.variants import MERGED

if TYPE_CHECKING:
    from spunge.report.drawing import Figure

__all__ = ["Line", "build", "card", "compare", "draw", "ending", "judge", "summary", "tabulate", "watch", "write"]

build = results.build


def write(run: Path, *, ending: bool = False) -> Path:
    """Writes `RUN/report/` (`results.json`, `results.md`, `index.html`, `figures/`) and returns the page's path.

    Args:
        run: The run's directory.
        ending: Whether the report is the last that a run writes, which is done with it.

    Raises:
        ArtifactError: There is no run here, another version of Spunge wrote it, or the report cannot be written.
    """
    read = artifacts.read(run, ending=ending)
    return _write(read, results.compute(read), run / "report")


def watch(run: Path, *, seconds: float = 5.0) -> Iterator[Path]:
    """Writes the report, and again whenever the run has come further, until it is done or has failed.

    Raises:
        ArtifactError: As in `write`.
    """
    seen = None
    while True:
        running = artifacts.read(run).manifest.status == "running"
        stamp = [state_of(file) for name in ("manifest.json", JOURNAL) if (file := run / name).exists()]
        if stamp != seen:
            seen = stamp
            yield write(run)
        if not running:
            return
        time.sleep(seconds)


def compare(runs: Sequence[Path], out: Path, *, replace: bool = False) -> Path:
    """Writes the report of several runs side by side into `out` and returns the page's path.

    `out` is new, empty, or holds an earlier comparison of the same runs, which is written again.

    Args:
        runs: The directories of the runs; the first is what the others are compared with.
        out: Where the page goes.
        replace: Whether an earlier comparison of other runs may give way too.

    Raises:
        ArtifactError: A run cannot be read, the runs have no item in common, or something else is in `out`.
    """
    combined, labels, pairs = comparing.combine([artifacts.read(run) for run in runs], out)
    comparing.check_free(out, labels, replace=replace)
    return _write(combined, {**results.compute(combined, pairs=pairs), "runs": labels}, out)


def ending(report: Path) -> list[Line]:
    """Returns what a terminal says of a written report: verdict, numbers and contests.

    Args:
        report: The directory of `results.json`, in the run's own.
    """
    findings = _written(report)
    return closing(findings, judge(findings))


def summary(report: Path) -> dict[str, Any]:
    """Returns the verdict of a written report as JSON has it: sentences, numbers and contests."""
    findings = _written(report)
    judged = judge(findings)
    return {
        "sentences": list(judged.sentences),
        "numbers": [asdict(number) for number in judged.numbers],
        "contests": [
            {"rival": one.rival, "word": one.word, "matched": one.matched, "text": one.text} for one in judged.contests
        ],
        "warnings": list(findings.results["provenance"]["warnings"]),
    }


def _written(report: Path) -> Findings:
    written = report / "results.json"
    return Findings(json.loads(written.read_text(encoding="utf-8")) if written.is_file() else build(report.parent))


def card(run: Path, variant: str = MERGED.name, form: str = "checkpoint") -> str:
    """Returns the model card of a run's model, in the hub's format: what it is, verdict, tables, recipe, limits."""
    from spunge.report.markdown import model_card

    findings = Findings(build(run))
    return model_card(findings, judge(findings), key_tables(findings), variant, form)


def tabulate(findings: Findings) -> list[Table]:
    """Returns every table of a run's report."""
    found = [*all_tables(findings), *search.tables(findings), *differing.tables(findings), *judges.tables(findings)]
    return [*found, *(table for table in robustness.tables(findings) if table.cells), *audit.tables(findings)]


def draw(run: artifacts.Run, content: dict[str, Any]) -> list[Figure]:
    """Returns every figure of a run's report.

    Args:
        run: The run.
        content: What `results.compute` made of it.
    """
    from spunge.report import page  # the figures need matplotlib, two seconds to import

    findings = Findings(content)
    return page.render(run, findings, judge(findings), tabulate(findings))[1]


def judge(findings: Findings) -> Verdict:
    """Returns what results come to: of an audit each model by itself, of a run SPUNGE beside its rivals."""
    return audit.verdict(findings) if findings.audited else verdict(findings)


def _write(run: artifacts.Run, content: dict[str, Any], out: Path) -> Path:
    from spunge.report import markdown, page  # the figures need matplotlib, two seconds to import

    findings = Findings(content)
    judged = judge(findings)
    html, drawn = page.render(run, findings, judged, tabulate(findings))
    content = json.loads(json.dumps(content, allow_nan=False))  # as it is read back: no key is a number
    files = {
        "results.json": json.dumps({**content, "checksum": checksum(content)}, indent=1, allow_nan=False) + "\n",
        "results.md": markdown.render(findings, judged, key_tables(findings)),
        "index.html": html,
        **{f"figures/{figure.key}.svg": figure.svg for figure in drawn},
    }
    try:
        if (out / "figures").exists():
            shutil.rmtree(out / "figures")
        (out / "figures").mkdir(parents=True)
    except OSError as error:
        raise ArtifactError(f"{out}: the report cannot be written: {error.strerror or error}") from error
    for name, text in files.items():
        replace_text(out / name, text)
    return out / "index.html"

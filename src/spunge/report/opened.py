"""A run in Python: what its report shows, as polars frames and sentences."""

from __future__ import annotations

import html
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from spunge.report import artifacts, results
from spunge.report.findings import Findings

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

    from spunge.report.tables import Table
    from spunge.report.verdict import Verdict


@dataclass(frozen=True, eq=False)
class OpenedRun:
    """A run that was read; a notebook shows its verdict."""

    run: artifacts.Run
    """The run as it lies on disk: its path, manifest and recipe, and what is missing of it."""

    @classmethod
    def read(cls, directory: Path, *, whole: bool = False) -> OpenedRun:
        """Reads a run's directory.

        Args:
            directory: The run's.
            whole: Whether its answers are read now, as the directory will not stay; else when they are needed.

        Raises:
            ArtifactError: There is no run here, another version of Spunge wrote it, or its files are damaged.
        """
        run = artifacts.read(directory)
        return cls(replace(run, items=run.items.collect().lazy()) if whole else run)

    @cached_property
    def items(self) -> pl.DataFrame:
        """Every answer: one row for each variant, seed, item and metric, with the item's attributes."""
        return self.run.items.collect()

    @cached_property
    def results(self) -> dict[str, Any]:
        """What `report/results.json` holds, computed from the answers."""
        return results.compute(self.run)

    @property
    def scores(self) -> pl.DataFrame:
        """One row for each variant, suite, metric, seed and value of an attribute, with its interval."""
        return _frame(self.results["scores"])

    @property
    def comparisons(self) -> pl.DataFrame:
        """One row for each pair of variants and metric: the paired difference a − b, its interval and p."""
        return _frame(self.results["comparisons"])

    @cached_property
    def verdict(self) -> Verdict:
        """What the run shows: sentences, three numbers, a contest a rival; of an audit, each model by itself."""
        from spunge import report

        return report.judge(Findings(self.results))

    @cached_property
    def tables(self) -> dict[str, Table]:
        """Every table of the report by its name: `to_latex()`, `to_csv()`, `to_markdown()`."""
        from spunge import report

        return {table.key: table for table in report.tabulate(Findings(self.results))}

    @cached_property
    def figures(self) -> dict[str, Canvas]:
        """Every figure of the report by its name, as matplotlib's own object: change it, and `savefig`."""
        from spunge import report

        return {figure.key: figure.canvas for figure in report.draw(self.run, self.results)}

    def __repr__(self) -> str:
        return f"{self.run.manifest.experiment} ({self.run.manifest.status}): {self.verdict.headline}"

    def _repr_html_(self) -> str:
        said = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in self.verdict.sentences)
        return f"<b>{html.escape(self.run.manifest.experiment)}</b> ({self.run.manifest.status})<ul>{said}</ul>"


def _frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(rows, infer_schema_length=None)

"""How often a classifier errs on what these very models wrote, and how frequent a verdict is once that is corrected."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl

from spunge.report.artifacts import Suite
from spunge.report.findings import Findings
from spunge.report.tables import Cell, Table, level, percent
from spunge.rows.items import REFERENCE
from spunge.statistics import corrected_prevalence, wilson
from spunge.variants import label_of

_KEY = ("variant", "seed", "suite", "task", "item")


def judged(suites: Sequence[Suite], items: pl.LazyFrame) -> Iterator[dict[str, Any]]:
    """Yields, for each suite whose verdicts a better reader has seen some of, the error and every corrected rate.

    The error is counted over all variants' answers together: a sample of each would say too little.
    """
    for suite in suites:
        metric = suite.headline
        if suite.reference is None or metric is None:
            continue
        read = pl.col("metric").is_in([metric.name, REFERENCE]) & pl.col("value").is_not_null()
        mine = items.filter((pl.col("suite") == suite.suite) & read).select(*_KEY, "metric", "value").collect()
        verdicts = mine.filter(pl.col("metric") == metric.name).select(*_KEY, pl.col("value").alias("verdict"))
        reference = mine.filter(pl.col("metric") == REFERENCE).select(*_KEY, pl.col("value").alias("truth"))
        both = verdicts.join(reference, on=_KEY, nulls_equal=True)
        counts = {
            (truth, verdict): both.filter((pl.col("truth") == truth) & (pl.col("verdict") == verdict)).height
            for truth in (0, 1)
            for verdict in (0, 1)
        }
        sensitivity = (counts[1, 1], counts[1, 1] + counts[1, 0])
        specificity = (counts[0, 0], counts[0, 0] + counts[0, 1])
        rates = []
        for (variant,), rows in verdicts.group_by(["variant"], maintain_order=True):
            found = corrected_prevalence(float(rows["verdict"].sum()), len(rows), sensitivity, specificity)
            value, low, high = (None, None, None) if found is None else (found[0], found[1].low, found[1].high)
            rates.append({"variant": variant, "n": len(rows), "corrected": value, "low": low, "high": high})
        yield {
            "suite": suite.suite, "metric": metric.name, "reference": suite.reference,
            "sensitivity": sensitivity, "specificity": specificity, "rates": rates,
        }  # fmt: skip


def tables(findings: Findings) -> list[Table]:
    """Returns a table for each suite whose verdicts were checked: the rate as read, and corrected."""
    return [_table(findings, row) for row in findings.results.get("judges", ())]


def _table(findings: Findings, row: dict[str, Any]) -> Table:
    column = findings.column(row["suite"], None, row["metric"])
    words = column.metric.in_words
    cells = []
    for rate in row["rates"]:
        if rate["variant"] not in findings.main_variants:
            continue
        corrected = percent(rate["corrected"])
        if rate["corrected"] is not None:
            ends = f"[{100 * rate['low']:.1f}, {100 * rate['high']:.1f}]"
            corrected = Cell(corrected.text, rate["corrected"], rate["low"], rate["high"], ends)
        raw = level(findings.score(rate["variant"], column), column)
        cells.append([Cell(label_of(rate["variant"])), raw, corrected, Cell(str(rate["n"]), rate["n"])])
    finds, spares = (_share(*row[name]) for name in ("sensitivity", "specificity"))
    note = (
        f"By {row['reference']}, the classifier finds {finds} of the true ones and lets {spares} of the others pass, "
        "on what these models wrote. Corrected for that by Rogan and Gladen, with an interval that carries the "
        "classifier's own uncertainty (Lang and Reiczigel); — where the sample does not tell."
    )
    title = f"{column.name}: {words}, and how many there are once the classifier's error is corrected"
    return Table(f"judged-{row['suite']}", title, note, ["Model", "As read, %", "Corrected, %", "n"], cells)


def _share(hits: int, of: int) -> str:
    if not of:
        return "— (none in the sample)"
    interval = wilson(hits, of)
    return f"{100 * hits / of:.0f} % [{100 * interval.low:.0f}, {100 * interval.high:.0f}] (n = {of})"

"""The table of the search that an RMU recipe's settings come from: every trial, the best first."""

from __future__ import annotations

from spunge.report.findings import Findings
from spunge.report.tables import Cell, Table

_COLUMNS = {
    "layer": "layer",
    "ratio": "c / length",
    "steering_coefficient": "c",
    "alpha": "α",
    "forget_cosine": "forget cosine",
    "retain_cosine": "retain cosine",
    "score": "score",
}


def tables(findings: Findings) -> list[Table]:
    """Returns the search's table, in a list that is empty where the recipe's settings come from no search."""
    trials = findings.results["provenance"]["search"]
    if not trials:
        return []
    cells = [[_cell(trial.get(name)) for name in _COLUMNS] for trial in trials]
    note = (
        "Short runs, the best first. The cosines are between the activations of the changed and the base model at the "
        "layer; the score is that of the retain set less that of the forget set (where negative, 0)."
    )
    return [Table("search", "How layer, c and α were found", note, list(_COLUMNS.values()), cells)]


def _cell(value: float | None) -> Cell:
    return Cell("–") if value is None else Cell(f"{value:.3g}", float(value))

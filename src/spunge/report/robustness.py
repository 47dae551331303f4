"""What an attacker gets back: the worst case of each variant, every attack beside every variant, and both in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from spunge.report import membership
from spunge.report.findings import Column, Findings, Row
from spunge.report.recovery import begun
from spunge.report.rows import Ends
from spunge.report.tables import Cell, Table, decimals, signed
from spunge.variants import BASE, ORACLE, label_of

MEMBERSHIP = "membership †"
LEAST_KEPT = 0.9
"""What an attack must leave of what must stay: one that ruins the model has brought nothing back."""


@dataclass(frozen=True)
class Worst:
    """The attack that brought most back of what one variant forgot of one suite."""

    variant: str
    column: Column
    row: Row

    @property
    def recovered(self) -> float:
        """The share that the attack brought back beyond what was left without it: 0 nothing, 1 all."""
        return self.row["returned"]

    @property
    def never_gone(self) -> float | None:
        """The share that the model answers without any attack, above the oracle; None without an oracle."""
        return self.row["never_gone"]

    @property
    def ends(self) -> Ends | None:
        """Its interval, which holds for all that were tried."""
        low, high = self.row["worst_low"], self.row["worst_high"]
        return None if low is None or high is None else (low, high)

    @property
    def how(self) -> str:
        """The attack and its setting, in words."""
        attack = str(self.row["suite"]).removeprefix(f"{self.row['attacks']}: ").replace("_", " ")
        return f"{attack}, {self.row['setting']}"

    @property
    def told(self) -> str:
        """What was forgotten, and what of it came back."""
        row = self.row
        factor, unit = (100, "points") if self.column.share else (1, f"of {self.column.metric.in_words}")
        places = 0 if self.column.share else 2
        taken, back = (abs(row[name] - row["unlearned"]) * factor for name in ("base", "attacked"))
        towards = (row["attacked"] - row["unlearned"]) * (row["base"] - row["unlearned"]) > 0
        back = f"{back:.{places}f} come back by {self.how}" if towards else "no attack brings any of it back"
        return f"forgotten {taken:.{places}f} {unit}; {back}"


def never_gone(share: float) -> str:
    """Says how much of what the oracle lacks the unlearned model answers without any attack."""
    return f"{100 * max(0.0, share):.0f} % of what the oracle lacks was never gone"


def worst_cases(findings: Findings, value: str | None = None) -> dict[tuple[str, Column], Worst]:
    """Returns the worst case of every variant on every suite of what must go, where any attack was tried.

    Args:
        findings: The results.
        value: Of the attribute that was split by; None: overall.
    """
    split_by = findings.results["split"]["attribute"]
    wanted = (None, None) if value is None else (split_by, value)
    worst: dict[tuple[str, Column], Worst] = {}
    for row in findings.results["attacks"]:
        about = (row["attribute"], row["attribute_value"])
        if row["goal"] != "forget" or row["returned"] is None or about != wanted or row["needs_base"]:
            continue
        if not _counts(row):
            continue
        column = findings.column(row["attacks"], row["task"], row["metric"], row["goal"])
        key = (row["variant"], column)
        if key not in worst or row["returned"] > worst[key].recovered:
            worst[key] = Worst(row["variant"], column, row)
    return worst


def _counts(row: Row) -> bool:
    """Whether a setting is an attack that has begun and left the model usable."""
    return begun(row["setting"]) and (row["kept"] is None or row["kept"] >= LEAST_KEPT)


def values_of(findings: Findings) -> list[str]:
    """Returns the values of the attribute that was split by, as far as attacks asked about them."""
    split_by = findings.results["split"]["attribute"]
    rows = (row for row in findings.results["attacks"] if row["attribute"] == split_by and split_by is not None)
    return list(dict.fromkeys(row["attribute_value"] for row in rows))


def tables(findings: Findings) -> list[Table]:
    """The worst case of every variant, overall and by value; and what each attack does to the base and the oracle."""
    tried = max((row["tried"] for row in findings.results["attacks"]), default=0)
    note = (
        f"Of up to {tried} settings that were tried on a suite, the one that brought most back; the interval is "
        "widened for their number, and holds for all of them at once. Not counted are those that left less than 90 % "
        "of what must stay, and those that take the base model's weights, whose owner needs no attack. Where there is "
        "an oracle, shares are of what it lacks: never gone is what the model answers without any attack, and what "
        "was brought back comes on top of it."
    )
    title = "The most that an attack brought back"
    header = ["On", "Model", "Before", "Never gone", "Under attack", "Brought back", "By", "n"]
    by_value = [cells for value in values_of(findings) for cells in _worst(findings, value)]
    return [
        Table("robustness", title, note, header, _worst(findings, None)),
        Table("robustness-values", f"{title}, by value", note, header, by_value),
        _beside(findings),
        membership.table(findings),
    ]


def _worst(findings: Findings, value: str | None) -> list[list[Cell]]:
    cases = worst_cases(findings, value).values()
    return [_worst_cells(one, value) for one in cases if one.variant in findings.variants]


def _worst_cells(one: Worst, value: str | None) -> list[Cell]:
    row, factor = one.row, 100 if one.column.share else 1
    places = 1 if one.column.share else 3
    share, *ends = (signed(100 * each, 0).lstrip("+") for each in (one.recovered, *(one.ends or ())))
    interval = f"[{', '.join(ends)}]" if ends else ""
    back = Cell(f"{share} %", one.recovered, *(one.ends or (None, None)), interval)
    return [
        Cell(" · ".join(part for part in (one.column.name, value) if part)), Cell(label_of(one.variant)),
        Cell(f"{row['unlearned'] * factor:.{places}f}", row["unlearned"]),
        Cell("—" if one.never_gone is None else f"{signed(100 * one.never_gone, 0).lstrip('+')} %", one.never_gone),
        Cell(f"{row['attacked'] * factor:.{places}f}", row["attacked"]),
        back, Cell(one.how), Cell(str(row["n"]), row["n"]),
    ]  # fmt: skip


def _beside(findings: Findings) -> Table:
    """What attacks do to models that have nothing to bring back: one that teaches is no attack."""
    cells: list[list[Cell]] = []
    for row in findings.results["attacks"]:
        if row["variant"] in (BASE.name, ORACLE.name) and row["attribute"] is None and begun(row["setting"]):
            column = findings.column(row["attacks"], row["task"], row["metric"], row["goal"])
            factor = 100 if column.share else 1
            if row["unlearned"] is None or row["attacked"] is None:
                continue
            change = factor * (row["attacked"] - row["unlearned"])
            spread = (row["attacked_low"], row["attacked_high"])
            digits = 1 if None in spread else decimals(*(factor * end for end in spread))
            cells.append([
                Cell(_attack(row)), Cell(column.name), Cell(label_of(row["variant"])),
                Cell(f"{factor * row['unlearned']:.{digits}f}"), Cell(f"{factor * row['attacked']:.{digits}f}"),
                Cell(signed(change, digits), change), Cell(str(row["n"]), row["n"]),
            ])  # fmt: skip
    return Table(
        "robustness-beside",
        "What the attacks do to a model that forgot nothing, or never knew",
        "An attack that helps the oracle teaches, and one that ruins the base model finds nothing in others.",
        ["Attack", "On", "Model", "Before", "Under attack", "Change", "n"],
        cells,
    )


def _attack(row: Mapping[str, Any]) -> str:
    return f"{str(row['suite']).removeprefix(str(row['attacks']) + ': ').replace('_', ' ')}: {row['setting']}"


def heat(findings: Findings) -> Iterator[tuple[Column, list[str], list[str], list[list[float]]]]:
    """Yields of every suite the share that each attack's worst setting brought back of each variant.

    Yields:
        What was asked; the attacks; the variants; [attacks][variants] of shares in per cent, NaN where there is none.
    """
    best: dict[Column, dict[str, dict[str, float]]] = {}
    for (attack, column), rows in findings.attacks.items():
        for row in rows:
            if row["returned"] is None or not _counts(row) or column.goal != "forget":
                continue
            name = attack.removeprefix(f"{column.suite}: ").replace("_", " ") + " *" * row["needs_base"]
            levels = best.setdefault(column, {}).setdefault(name, {})
            levels[row["variant"]] = max(100 * row["returned"], levels.get(row["variant"], -math.inf))
    for row in findings.results.get("membership", ()):
        column = next((one for one in findings.leading("forget") if one.suite == row["attacks"]), None)
        if column is not None and row["left"] is not None and row["attribute"] is None:
            levels = best.setdefault(column, {}).setdefault(MEMBERSHIP, {})
            levels[row["variant"]] = max(100 * row["left"], levels.get(row["variant"], -math.inf))
    for column, attacks in best.items():
        known = {variant for levels in attacks.values() for variant in levels}
        variants = [name for name in findings.variants if name in known]
        grid = [[levels.get(variant, math.nan) for variant in variants] for levels in attacks.values()]
        yield column, list(attacks), variants, grid

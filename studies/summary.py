"""What a study came to: scores of every arm at the same damage, and differences between arms, with their intervals."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from spunge import statistics

Grid = NDArray[np.float64]
POWER = 2.8
"""Standard errors that a difference must measure to be found four times of five: 1.96 + 0.84."""


@dataclass(frozen=True)
class Scores:
    """One suite's scores: per arm and point a grid [seeds, items], all of the same items."""

    grids: Mapping[tuple[str, str], Grid]
    items: Sequence[str]
    groups: Sequence[Sequence[str]]
    """Of each item."""
    seeds: Mapping[tuple[str, str], Sequence[int]]
    """Which seeds the rows of a grid are."""


def scores(items: pl.DataFrame, suite: str, metric: str, attribute: str) -> Scores:
    """Returns a suite's scores.

    Args:
        items: One row an arm, seed, point, suite, item and metric.
        suite: Whose.
        metric: What counts; `nll` per token.
        attribute: The items' attribute that holds their groups.
    """
    rows = items.filter(pl.col("suite") == suite)
    wide = rows.pivot(on="metric", index=["arm", "seed", "point", "item", "attributes"], values="value")
    score = pl.col("nll") / pl.col("tokens") if metric == "nll" else pl.col(metric)
    wide = wide.with_columns(score.alias("score")).sort("arm", "point", "seed", "item")
    grids: dict[tuple[str, str], Grid] = {}
    seeds: dict[tuple[str, str], list[int]] = {}
    names: list[str] = sorted(wide["item"].unique())
    for (arm, point), part in wide.group_by("arm", "point", maintain_order=True):
        seeds[str(arm), str(point)] = sorted(part["seed"].unique())
        grids[str(arm), str(point)] = part["score"].to_numpy().reshape(-1, len(names))
    attributes = dict(wide.select("item", "attributes").unique().iter_rows())
    cells = [json.loads(attributes[name])[attribute] for name in names]
    groups = [cell if isinstance(cell, list) else [cell] for cell in cells]
    return Scores(grids, names, groups, seeds)


def summarise(items: pl.DataFrame, matches: Sequence[Mapping[str, Any]], study: Any) -> dict[str, Any]:
    """Returns a study's results: `arms` at every point, `contrasts` between them, and what could have been found."""
    result: dict[str, Any] = {"arms": [], "contrasts": []}
    for suite, score in study.scores.items():
        measured = scores(items, suite, score.metric, score.by)
        base = measured.grids["base", ""][0]
        for (arm, point), grid in measured.grids.items():
            if arm == "base":
                result["arms"].append({"suite": suite, "arm": "base", **_mean(base[None])})
                continue
            by_group = {
                group: float((grid - base)[:, [group in names for names in measured.groups]].mean())
                for group in score.shown
            }
            result["arms"].append({
                "suite": suite, "arm": arm, "point": point, "seeds": measured.seeds[arm, point],
                **_mean(grid - base), "by_group": {name: round(value, 4) for name, value in by_group.items()},
                **_spent(matches, arm, point),
            })  # fmt: skip
        for one, other in study.contrasts:
            for point in sorted({point for arm, point in measured.grids if arm == one}):
                if (other, point) in measured.grids:
                    contrast = _contrast(measured, one, other, point, score.shown)
                    result["contrasts"].append({"suite": suite, "arms": [one, other], "point": point, **contrast})
    return result


def sign(metric: str) -> int:
    """Returns 1 where a score rises as something is forgotten, as what is forgotten becomes less likely; else −1."""
    return 1 if metric == "nll" else -1


def forgotten(items: pl.DataFrame, suite: str, score: Any) -> dict[str, float]:
    """Returns how much one arm forgets at each point: more is more forgotten, whichever way its score goes."""
    measured = scores(items, suite, score.metric, score.by)
    base = measured.grids["base", ""][0]
    return {
        point: round(sign(score.metric) * float((grid - base).mean()), 4)
        for (arm, point), grid in measured.grids.items()
        if arm != "base"
    }


def _mean(grid: Grid) -> dict[str, Any]:
    interval = statistics.mean_interval(grid)
    return {"mean": round(float(grid.mean()), 4), "interval": [round(interval.low, 4), round(interval.high, 4)]}


def _contrast(measured: Scores, one: str, other: str, point: str, shown: Sequence[str]) -> dict[str, Any]:
    """One arm minus the other, on the seeds that both have."""
    keys = [(one, point), (other, point)]
    seeds = sorted(set(measured.seeds[keys[0]]) & set(measured.seeds[keys[1]]))
    a, b = (measured.grids[key][[measured.seeds[key].index(seed) for seed in seeds]] for key in keys)
    compared = statistics.compare(a, b)
    interval = compared.interval()
    worst = {group: float((a - b)[:, [group in names for names in measured.groups]].mean()) for group in shown}
    return {
        "seeds": len(seeds),
        "difference": round(compared.difference, 4),
        "interval": [round(interval.low, 4), round(interval.high, 4)],
        "p": float(f"{compared.p:.2g}"),
        "by_seed": [round(float(value), 4) for value in (a - b).mean(1)],
        "by_group": {name: round(value, 4) for name, value in worst.items()},
        "detectable": round(POWER * sqrt(compared.spread.variance), 4),
    }


def _spent(matches: Sequence[Mapping[str, Any]], arm: str, point: str) -> dict[str, Any]:
    """What a point took on average over the seeds: λ, both damages, steps and seconds of training."""
    here = [one for one in matches if one["variant"] == arm and f"{one['matching']} {one['budget']:g}" == point]
    if not here:
        return {}
    spent = ("scale", "near", "far", "steps", "seconds", "cosine")
    figures: dict[str, list[Any]] = {name: [one.get(name) for one in here] for name in spent}
    missed = [one["status"] for one in here if one["status"] != "matched"]
    means = {name: float(f"{np.mean(values):.4g}") for name, values in figures.items() if None not in values}
    return {**means, **({"missed": missed} if missed else {})}

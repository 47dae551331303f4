"""Builds `results.json`: every score and every paired comparison of a run, with intervals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from spunge.report import artifacts
from spunge.report.answers import Answers, Scope, matrices
from spunge.report.artifacts import Run, Suite
from spunge.report.estimates import Estimate, difference, estimate, macro
from spunge.report.recovery import recovered
from spunge.report.rows import Comparison, Score, written
from spunge.rows.items import RUN_FORMAT
from spunge.statistics import benjamini_hochberg
from spunge.variants import BASE, MERGED, RIVALS

MACRO = "macro"
"""The value of an attribute that stands for the mean over its values."""


def build(run: Path) -> dict[str, Any]:
    """Returns the content of `results.json` for a run's directory, as far as the run has come.

    Raises:
        ArtifactError: There is no run here, or another version of Spunge wrote it.
    """
    return of(artifacts.read(run))


def of(run: Run, *, pairs: Sequence[tuple[str, str]] | None = None) -> dict[str, Any]:
    """Returns the content of `results.json` for a run that has been read.

    Args:
        run: The run.
        pairs: Which variants to compare; by default all with base, and SPUNGE with its rivals.
    """
    manifest = run.manifest
    names = list(
        dict.fromkeys([*(v.name for v in manifest.variants), *run.items["variant"].unique(maintain_order=True)])
    )
    suites = {suite.suite: suite for suite in manifest.suites}
    scores: list[Score] = []
    comparisons: list[Comparison] = []
    by_attribute: list[Comparison] = []
    measured = list(matrices(run.items))
    for answers in measured:
        scores += _scores(answers)
        metric = suites.get(answers.suite, Suite(suite=answers.suite)).metric(answers.metric)
        compared = metric is not None or answers.binary
        for a, b in (pairs or list(_pairs(names))) if compared else ():
            if not (rows := answers.paired(a, b)):
                continue
            for scope in answers.scopes:
                if scope.attribute is None:
                    comparisons.append(_comparison(answers, a, b, rows, scope))
                elif metric is not None and metric.shown:
                    by_attribute.append(_comparison(answers, a, b, rows, scope))
    chances, letters = _chances(run.items), _letters(run.items)
    return {
        "format": RUN_FORMAT,
        "experiment": manifest.experiment,
        "status": manifest.status,
        "suites": [
            {**suite.model_dump(mode="json"), "chance": chances.get(suite.suite), "letters": letters.get(suite.suite)}
            for suite in manifest.suites
        ],
        "split": manifest.split.model_dump(mode="json"),
        "variants": [
            {"name": variant.name, "kind": variant.kind, "subset": variant.subset, "seed": variant.seed}
            for variant in manifest.variants
        ],
        "scores": [written(score) for score in scores],
        "comparisons": [written(comparison) for comparison in comparisons],
        "comparisons_by_attribute": [written(comparison) for comparison in _corrected(by_attribute)],
        "attacks": list(recovered(manifest.suites, measured)),
        "sweep": manifest.sweep,
        "provenance": _provenance(run),
    }


def _pairs(names: list[str]) -> Iterator[tuple[str, str]]:
    """Yields what is compared with what: everything with base, and SPUNGE with each of its rivals."""
    for name in names:
        if name != BASE.name and BASE.name in names:
            yield name, BASE.name
    for rival in RIVALS:
        if rival in names and MERGED.name in names:
            yield MERGED.name, rival


def _scores(answers: Answers) -> Iterator[Score]:
    variants = list(dict.fromkeys(name for name, _ in answers.models))
    for variant in variants:
        rows = answers.rows(variant)
        columns: list[tuple[int | None, list[int]]] = [(answers.models[row][1], [row]) for row in rows]
        if len({seed for _, seed in answers.models}) > 1:
            columns.append((None, rows))
        for seed, chosen in columns:
            groups: dict[tuple[str | None, str], list[Estimate]] = {}
            for scope in answers.scopes:
                value = estimate(answers, chosen, scope.rows)
                yield _score(answers, variant, seed, scope, value)
                if scope.attribute is not None:
                    groups.setdefault((scope.task, scope.attribute), []).append(value)
            for (task, attribute), values in groups.items():
                yield _score(answers, variant, seed, Scope(task, attribute, MACRO, np.array([])), macro(values))


def _score(answers: Answers, variant: str, seed: int | None, scope: Scope, score: Estimate) -> Score:
    where = (answers.suite, scope.task, scope.attribute, scope.attribute_value, answers.metric)
    value = math.nan if score.value is None else score.value
    return Score(variant, seed, *where, value, score.low, score.high, score.n)


def _comparison(answers: Answers, a: str, b: str, pairs: list[tuple[int, int]], scope: Scope) -> Comparison:
    figures = asdict(difference(answers, pairs, scope.rows))
    figures |= {"difference": math.nan} if figures["difference"] is None else {}
    about = (answers.suite, scope.task, answers.metric)
    return Comparison(a, b, *about, **figures, attribute=scope.attribute, attribute_value=scope.attribute_value)


def _corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Adds `q`: p after correction over the values of the attribute, a family of tests for every pair and metric."""
    families: dict[tuple[Any, ...], list[int]] = {}
    for index, row in enumerate(comparisons):
        family = (row.a, row.b, row.suite, row.task, row.metric, row.attribute)
        families.setdefault(family, []).append(index)
    corrected = list(comparisons)
    for family in families.values():
        ps = [comparisons[index].p for index in family]
        for index, q in zip(family, benjamini_hochberg([math.nan if p is None else p for p in ps]), strict=True):
            corrected[index] = replace(comparisons[index], q=None if math.isnan(q) else q)
    return corrected


def _chances(items: pl.DataFrame) -> dict[str, float]:
    """The accuracy of a guess on each multiple-choice suite."""
    choices = items.filter(pl.col("metric").str.starts_with("choice_loglikelihood:"))
    counts = choices.group_by("suite", "variant", "seed", "task", "item").len()
    means = counts.group_by("suite").agg((1 / pl.col("len")).mean().alias("chance"))
    return dict(means.sort("suite").iter_rows())


def _letters(items: pl.DataFrame) -> dict[str, dict[str, list[float]]]:
    """Suite → variant → the share of items on which it chose the first, second … answer."""
    chosen = items.filter((pl.col("metric") == "chosen") & pl.col("value").is_not_null())
    found: dict[str, dict[str, list[float]]] = {}
    for (suite, variant), part in chosen.group_by(["suite", "variant"], maintain_order=True):
        counts = np.bincount(part["value"].to_numpy().astype(int))
        found.setdefault(str(suite), {})[str(variant)] = (counts / counts.sum()).tolist()
    return found


def _provenance(run: Run) -> dict[str, Any]:
    manifest = run.manifest
    return {
        "spunge": manifest.version,
        "command": manifest.command,
        "model": manifest.model.model_dump(mode="json"),
        "method": artifacts.method(run),
        "seeds": list(manifest.seeds),
        "stages": [
            {
                "stage": stage.stage,
                "key": stage.key,
                "status": stage.status,
                "seconds": stage.seconds,
                "name": stage.name,
                "seed": stage.seed,
                "peak_memory": stage.peak_memory,
            }
            for stage in manifest.stages
        ],
        "task_vectors": [
            {"name": each.name, "seed": each.seed, "norm": each.norm, "steps": each.steps, "path": each.task_vector}
            for each in manifest.variants
            if each.task_vector is not None
        ],
        "merge": dict(manifest.merge),
        "search": [dict(trial) for trial in manifest.search],
        "environment": dict(manifest.environment),
        "recipe": run.recipe,
        "warnings": list(manifest.warnings),
        "not_run": list(manifest.not_run),
        "missing": list(run.missing),
    }

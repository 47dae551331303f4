"""Builds `results.json`: every score and every paired comparison of a run, with intervals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from spunge.report import artifacts
from spunge.report.answers import Answers, Scope, matrices
from spunge.report.artifacts import Manifest, Run
from spunge.report.estimates import Difference, Estimate, difference, estimate, macro
from spunge.report.recovery import recovered
from spunge.statistics import benjamini_hochberg

BASE, JOINT, SPUNGE = "base", "joint", "spunge"
RIVALS = (JOINT, "joint_equal_steps", "sequential", "random_split")
MACRO = "macro"


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
    scores, comparisons, by_attribute = [], [], []
    found = list(matrices(run.items))
    for answers in found:
        scores += _scores(answers)
        headline = answers.metric == "perplexity" or answers.metric in _headline(manifest, answers.suite)
        compared = headline or answers.binary or answers.metric == "p_correct"
        for a, b in (pairs or list(_pairs(names))) if compared else ():
            if not (rows := answers.paired(a, b)):
                continue
            for scope in answers.scopes:
                if scope.attribute is None:
                    comparisons.append(_comparison(answers, a, b, rows, scope))
                elif headline:
                    row = _comparison(answers, a, b, rows, scope)
                    where = {"attribute": scope.attribute, "attribute_value": scope.attribute_value}
                    by_attribute.append({**row, **where})
    _mark(by_attribute)
    chances, letters = _chances(run.items), _letters(run.items)
    return {
        "format": artifacts.FORMAT,
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
        "scores": scores,
        "comparisons": comparisons,
        "comparisons_by_attribute": by_attribute,
        "attacks": list(recovered(manifest.suites, found)),
        "sweep": manifest.sweep,
        "provenance": _provenance(run),
    }


def _headline(manifest: Manifest, suite: str) -> tuple[str, ...]:
    return next((each.headline for each in manifest.suites if each.suite == suite), ())


def _pairs(names: list[str]) -> Iterator[tuple[str, str]]:
    """Yields what is compared with what: everything with base, and SPUNGE with each of its rivals."""
    for name in names:
        if name != BASE and BASE in names:
            yield name, BASE
    for rival in RIVALS:
        if rival in names and SPUNGE in names:
            yield SPUNGE, rival


def _scores(answers: Answers) -> Iterator[dict[str, Any]]:
    variants = list(dict.fromkeys(name for name, _ in answers.models))
    for variant in variants:
        rows = answers.rows(variant)
        columns: list[tuple[int | None, list[int]]] = [(answers.models[row][1], [row]) for row in rows]
        if len({seed for _, seed in answers.models}) > 1:
            columns.append((None, rows))
        for seed, chosen in columns:
            groups: dict[tuple[str | None, str], list[Estimate]] = {}
            for scope in answers.scopes:
                found = estimate(answers, chosen, scope.rows)
                yield _score(answers, variant, seed, scope.task, scope.attribute, scope.attribute_value, found)
                if scope.attribute is not None:
                    groups.setdefault((scope.task, scope.attribute), []).append(found)
            for (task, attribute), found in groups.items():
                yield _score(answers, variant, seed, task, attribute, MACRO, macro(found))


def _score(
    answers: Answers,
    variant: str,
    seed: int | None,
    task: str | None,
    attribute: str | None,
    attribute_value: str | None,
    found: Estimate,
) -> dict[str, Any]:
    return {
        "variant": variant,
        "seed": seed,
        "suite": answers.suite,
        "task": task,
        "attribute": attribute,
        "attribute_value": attribute_value,
        "metric": answers.metric,
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "n": found.n,
    }


def _comparison(answers: Answers, a: str, b: str, pairs: list[tuple[int, int]], scope: Scope) -> dict[str, Any]:
    found: Difference = difference(answers, pairs, scope.rows)
    return {
        "a": a,
        "b": b,
        "suite": answers.suite,
        "task": scope.task,
        "metric": answers.metric,
        "difference": found.difference,
        "low": found.low,
        "high": found.high,
        "relative": found.relative,
        "relative_low": found.relative_low,
        "relative_high": found.relative_high,
        "p": found.p,
        "n": found.n,
    }


def _mark(rows: list[dict[str, Any]]) -> None:
    """Adds `q`: p after correction over the values of the attribute, a family of tests for every pair and metric."""
    families: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        family = (row["a"], row["b"], row["suite"], row["task"], row["metric"], row["attribute"])
        families.setdefault(family, []).append(row)
    for family in families.values():
        adjusted = benjamini_hochberg([math.nan if row["p"] is None else row["p"] for row in family])
        for row, q in zip(family, adjusted, strict=True):
            row["q"] = None if math.isnan(q) else q


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

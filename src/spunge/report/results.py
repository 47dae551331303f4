"""Builds `results.json`: every score and every paired comparison of a run, with intervals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from spunge.metrics import Metric
from spunge.report import artifacts
from spunge.report.answers import Answers, Scope, in_order, matrices
from spunge.report.artifacts import Damage, Run, Suite
from spunge.report.damage import traced
from spunge.report.estimates import Difference, Estimate, difference, estimate, macro
from spunge.report.findings import Findings
from spunge.report.judges import judged
from spunge.report.membership import leaks
from spunge.report.recovery import recovered
from spunge.report.rows import Comparison, Score, judged_tasks, written
from spunge.rows.items import NAN, RUN_FORMAT
from spunge.statistics import standings
from spunge.variants import BASE, MERGED, RIVALS, SUBSET

MACRO = "macro"
"""The value of an attribute that stands for the mean over its values."""


def build(run: Path) -> dict[str, Any]:
    """Returns the content of `results.json` for a run's directory, as far as the run has come.

    Raises:
        ArtifactError: There is no run here, or another version of Spunge wrote it.
    """
    return compute(artifacts.read(run))


def compute(run: Run, *, pairs: Sequence[tuple[str, str]] | None = None) -> dict[str, Any]:
    """Returns the content of `results.json` for a run that has been read.

    Args:
        run: The run.
        pairs: Which variants to compare; by default all with base, and SPUNGE with its rivals.
    """
    manifest = run.manifest
    names = list(dict.fromkeys([*(v.name for v in manifest.variants), *in_order(run.items, "variant")["variant"]]))
    suites = {suite.suite: suite for suite in manifest.suites}
    measured = list(matrices(run.items, {name: suite.cluster for name, suite in suites.items() if suite.cluster}))
    scores = [score for answers in measured for score in _scores(answers)]
    compared = pairs or [*_pairs(names), *_pairs_elsewhere(manifest.damage)]
    # At other budgets than the headline's the verdict tests nothing.
    beside = {one.name for one in (manifest.damage.elsewhere if manifest.damage else ()) if one.matching == "near"}
    tell = _Telling(suites, manifest.split.attribute, frozenset(beside))
    differences = [test for answers in measured for test in _differences(answers, compared, tell)]
    settled = _settled(differences)
    chances, letters = _chances(run.items), _letters(run.items)
    content = {
        "format": RUN_FORMAT,
        "experiment": manifest.experiment,
        "status": manifest.status,
        "suites": [
            {**suite.model_dump(mode="json"), "chance": chances.get(suite.suite), "letters": letters.get(suite.suite)}
            for suite in manifest.suites
        ],
        "split": manifest.split.model_dump(mode="json"),
        "variants": [
            {
                "name": variant.name,
                "kind": variant.kind,
                "subset": variant.subset,
                "seed": variant.seed,
                **({} if variant.kl is None else {"kl": variant.kl}),
            }
            for variant in manifest.variants
        ],
        "scores": [written(score) for score in scores],
        "comparisons": [written(comparison) for comparison in settled if comparison.attribute is None],
        "comparisons_by_attribute": [written(comparison) for comparison in settled if comparison.attribute],
        "unscored": _unscored(run.items),
        "damage": manifest.damage.model_dump(mode="json") if manifest.damage else None,
        "judges": list(judged(manifest.suites, run.items)),
        "attacks": list(recovered(manifest.suites, measured)),
        "membership": list(leaks(manifest.suites, run.items)),
        "weights": [weights.model_dump(mode="json") for weights in manifest.weights],
        "sweep": manifest.sweep,
        "provenance": _provenance(run),
    }
    return content if content["damage"] is None else {**content, "damage": traced(Findings(content))}


def _pairs(names: list[str]) -> Iterator[tuple[str, str]]:
    """Yields what is compared with what: everything with base, and SPUNGE with each of its rivals."""
    for name in names:
        if name != BASE.name and BASE.name in names:
            yield name, BASE.name
    for rival in RIVALS:
        if rival in names and MERGED.name in names:
            yield MERGED.name, rival


def _pairs_elsewhere(damage: Damage | None) -> Iterator[tuple[str, str]]:
    """Yields what is compared at other points of the curves: SPUNGE there with each rival at the same."""
    points = dict.fromkeys((one.matching, one.budget) for one in damage.elsewhere) if damage else ()
    for matching, budget in points:
        assert damage is not None
        names = damage.asked_at(matching, budget)
        yield from ((names[MERGED.name], names[rival]) for rival in RIVALS if MERGED.name in names and rival in names)


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


@dataclass(frozen=True)
class _Tested:
    """A comparison before correction, and what it is corrected together with."""

    row: Comparison
    measured: Difference | None
    family: tuple[Any, ...]


@dataclass(frozen=True)
class _Telling:
    """What a verdict tells of a run, as far as it decides what is tested together."""

    suites: Mapping[str, Suite]
    split_by: str | None
    beside: frozenset[str]
    """Variants of which it tells nothing."""


def _differences(answers: Answers, pairs: Sequence[tuple[str, str]], tell: _Telling) -> Iterator[_Tested]:
    """Yields every comparison of a suite by one metric, overall and by attribute."""
    suite = tell.suites.get(answers.suite, Suite(suite=answers.suite))
    metric = suite.metric(answers.metric)
    if metric is None and not answers.binary:
        return
    tasks = [scope.task for scope in answers.scopes if scope.attribute is None]
    leads = metric is not None and metric == suite.headline and suite.attacks not in tell.suites
    judged = judged_tasks(tasks, suite.goal) if leads else ()
    for a, b in pairs:
        rows = answers.paired(a, b)
        for scope in answers.scopes if rows else ():
            if scope.attribute is not None and not (metric and metric.shown):
                continue
            row, measured = _comparison(answers, a, b, rows, scope)
            told = scope.task in judged and a not in tell.beside
            family = _family(row, suite.goal, metric, tell.split_by, judged=told)
            yield _Tested(row, measured, family)


def _comparison(
    answers: Answers, a: str, b: str, pairs: list[tuple[int, int]], scope: Scope
) -> tuple[Comparison, Difference | None]:
    about = (answers.suite, scope.task, answers.metric)
    measured = difference(answers, pairs, scope.rows)
    if measured is None:
        row = Comparison(a, b, *about, math.nan, None, None, None, None, None, None, 0)
        return replace(row, attribute=scope.attribute, attribute_value=scope.attribute_value), None
    paired, spread = measured.paired, measured.paired.spread
    unit_variance, seed_variance = measured.variances or (None, None)
    row = Comparison(
        a, b, *about, measured.value, None, None,
        measured.relative, *(measured.relative_ends or (None, None)), None if math.isnan(paired.p) else paired.p,
        spread.items,
        attribute=scope.attribute, attribute_value=scope.attribute_value, seeds=spread.seeds, clusters=spread.clusters,
        unit_variance=unit_variance, seed_variance=seed_variance,
    )  # fmt: skip
    return row, measured


def _family(
    row: Comparison, goal: str, metric: Metric | None, split_by: str | None, *, judged: bool
) -> tuple[Any, ...]:
    """Returns the name of the family of tests that a comparison is corrected with.

    The verdict's is all that it tests against zero: contests on the headline figures, and whether any value of what was
    split by got worse. Whether enough of the rest stayed is no such test but one interval against a margin, each by
    itself. All else is corrected with its like: the values of an attribute, and the other figures of a pair.
    """
    about = (row.a, row.b, row.suite, row.task, row.metric)
    against_base = row.b == BASE.name
    if row.attribute is None and against_base:
        fluency = metric is not None and metric.better in ("high", "low")
        if fluency or (judged and goal == "retain"):
            return ("kept", *about)
    counted = row.attribute is None or (row.attribute == split_by and against_base and goal == "forget")
    if judged and counted and row.a not in RIVALS and not row.a.startswith(SUBSET):
        return ("verdict",)
    return (*about, row.attribute) if row.attribute is not None else ("beside", row.a, row.b)


def _settled(tests: Sequence[_Tested]) -> list[Comparison]:
    """Returns the comparisons with q, interval and standing as the correction over each one's family leaves them."""
    families: dict[tuple[Any, ...], list[int]] = {}
    for index, test in enumerate(tests):
        if test.measured is not None:
            families.setdefault(test.family, []).append(index)
    settled = [test.row for test in tests]
    for family in families.values():
        measured = [one for index in family if (one := tests[index].measured) is not None]
        standing_of = standings([one.paired for one in measured])
        for index, one, standing in zip(family, measured, standing_of, strict=True):
            low, high = one.ends(standing.interval) or (None, None)
            q = None if math.isnan(standing.q) else standing.q
            settled[index] = replace(settled[index], low=low, high=high, q=q, stands=standing.stands)
    return settled


def _unscored(items: pl.LazyFrame) -> list[dict[str, Any]]:
    """Which variants gave NaN on a suite, on how many of its answers: they have no score there."""
    answers = items.filter((pl.col("metric") == NAN) & pl.col("value").is_not_null()).with_row_index("place")
    counts = answers.group_by("suite", "variant").agg(
        pl.len().alias("n"), (pl.col("value") > 0).sum().alias("nan"), pl.col("place").min()
    )
    counts = counts.collect(engine="streaming").sort("place")
    return counts.filter(pl.col("nan") > 0).select("suite", "variant", "nan", "n").to_dicts()


def _chances(items: pl.LazyFrame) -> dict[str, float]:
    """The accuracy of a guess on each multiple-choice suite."""
    choices = items.filter(pl.col("metric").str.starts_with("choice_loglikelihood:"))
    counts = choices.group_by("suite", "variant", "seed", "task", "item").len()
    means = counts.group_by("suite").agg((1 / pl.col("len")).mean().alias("chance"))
    return dict(means.sort("suite").collect(engine="streaming").iter_rows())


def _letters(items: pl.LazyFrame) -> dict[str, dict[str, list[float]]]:
    """Suite → variant → the share of items on which it chose the first, second … answer."""
    chosen = items.filter((pl.col("metric") == "chosen") & pl.col("value").is_not_null())
    chosen = chosen.select("suite", "variant", "value").collect(engine="streaming")
    shares: dict[str, dict[str, list[float]]] = {}
    for (suite, variant), part in chosen.group_by(["suite", "variant"], maintain_order=True):
        counts = np.bincount(part["value"].to_numpy().astype(int))
        shares.setdefault(str(suite), {})[str(variant)] = (counts / counts.sum()).tolist()
    return shares


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
            {
                "name": variant.name,
                "seed": variant.seed,
                "norm": variant.norm,
                "steps": variant.steps,
                "path": variant.task_vector,
            }
            for variant in manifest.variants
            if variant.task_vector is not None
        ],
        "merge": dict(manifest.merge),
        "search": [dict(trial) for trial in manifest.search],
        "environment": dict(manifest.environment),
        "recipe": run.recipe,
        "warnings": list(manifest.warnings),
        "seen": {suite: list(counts) for suite, counts in manifest.seen.items()},
        "not_run": list(manifest.not_run),
        "missing": list(run.missing),
    }

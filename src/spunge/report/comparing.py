"""Puts several runs into one, so that the same page compares them, matched by item."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from spunge.errors import ArtifactError
from spunge.report.artifacts import Manifest, Run, Split
from spunge.variants import BASE, MERGED, label_of

_KEY = ["suite", "task", "item"]


def combine(runs: Sequence[Run], out: Path) -> tuple[Run, list[str], list[tuple[str, str]]]:
    """Returns one run of all variants but the subsets' own, on the common items; the labels; who meets whom.

    Raises:
        ArtifactError: There are fewer than two runs, or they have no item in common.
    """
    if len(runs) < 2:
        raise ArtifactError("compare needs two runs or more: give their directories")
    labels = _labels(runs)
    items, left_out = _common(runs, labels)
    one_base = len({run.manifest.model.digest for run in runs}) == 1
    variants, frames, merged = [], [], []
    for number, (run, label) in enumerate(zip(runs, labels, strict=True)):
        names = {}
        for variant in run.manifest.variants:
            if variant.kind == "subset" or (variant.name == BASE.name and number and one_base):
                continue
            name = label if variant.kind == MERGED.kind else f"{label}: {label_of(variant.name)}"
            name = BASE.name if variant.name == BASE.name and not number else name
            names[variant.name] = name
            variants.append(variant.model_copy(update={"name": name}))
        merged += [label] if label in names.values() else []
        frame = items[number].filter(pl.col("variant").is_in(list(names)))
        frames.append(frame.with_columns(pl.col("variant").replace(names)))
    first = runs[0].manifest
    suites = {suite.suite: suite for run in reversed(runs) for suite in run.manifest.suites}
    manifest = Manifest(
        experiment=" and ".join(labels),
        status="done",
        version=first.version,
        model=first.model,
        seeds=tuple(sorted({seed for run in runs for seed in run.manifest.seeds})),
        suites=tuple(suites.values()),
        split=Split(attribute=first.split.attribute),
        variants=tuple(variants),
        stages=tuple(
            stage.model_copy(update={"name": f"{label}: {stage.name}", "path": None})
            for run, label in zip(runs, labels, strict=True)
            for stage in run.manifest.stages
        ),
        environment=first.environment,
        warnings=_warnings(runs, labels, one_base),
    )
    recipe = "\n---\n".join(run.recipe for run in runs)
    missing = [f"{label}: {problem}" for run, label in zip(runs, labels, strict=True) for problem in run.missing]
    if left_out:
        missing.append(f"{left_out} items are not in every run and are left out.")
    pairs = [(one, merged[0]) for one in merged[1:]]
    pairs += [(one, BASE.name) for one in merged]
    return Run(out, manifest, recipe, pl.concat(frames), tuple(missing)), labels, pairs


def check_free(out: Path, labels: Sequence[str], *, replace: bool = False) -> None:
    """Refuses a directory that holds anything but an earlier comparison, of the same runs unless any may be replaced.

    Raises:
        ArtifactError: Something else is there, and would be lost.
    """
    try:
        if not out.exists() or (out.is_dir() and not any(out.iterdir())):
            return
        earlier = json.loads((out / "results.json").read_text(encoding="utf-8"))["runs"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ArtifactError(f"{out}: exists and is no comparison of runs; give another --out") from None
    if earlier != list(labels) and not replace:
        compared = " and ".join(map(str, earlier))
        raise ArtifactError(f"{out}: holds the comparison of {compared}; give another --out, or delete it")


def _labels(runs: Sequence[Run]) -> list[str]:
    names = [run.manifest.experiment for run in runs]
    earlier = [names[:at].count(name) for at, name in enumerate(names)]
    return [f"{name} ({count + 1})" if count else name for name, count in zip(names, earlier, strict=True)]


def _common(runs: Sequence[Run], labels: Sequence[str]) -> tuple[list[pl.LazyFrame], int]:
    questions = [run.items.select(_KEY).unique().collect(engine="streaming") for run in runs]
    common = questions[0]
    for other in questions[1:]:
        common = common.join(other, on=_KEY, how="semi")
    if not len(common):
        raise ArtifactError(
            f"{' and '.join(labels)} have no item in common: compare runs that were asked the same questions"
        )
    every = pl.concat(questions).unique()
    frames = [run.items.join(common.lazy(), on=_KEY, how="semi", maintain_order="left") for run in runs]
    return frames, len(every) - len(common)


def _warnings(runs: Sequence[Run], labels: Sequence[str], one_base: bool) -> tuple[str, ...]:
    warnings = [
        f"{label}: {warning}" for run, label in zip(runs, labels, strict=True) for warning in run.manifest.warnings
    ]
    if not one_base:
        warnings.append("The runs start from different base models; differences from base are from the first run's.")
    devices = {str(run.manifest.environment.get("device")) for run in runs}
    if len(devices) > 1:
        warnings.append(f"The runs were computed on different devices ({', '.join(sorted(devices))}).")
    return tuple(warnings)

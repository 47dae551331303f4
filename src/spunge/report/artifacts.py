"""Reads a run's directory: the manifest, the recipe and the item table, as far as they are there."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import polars as pl
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from ruamel.yaml import YAML, YAMLError

from spunge.errors import ArtifactError, first_line
from spunge.files import checksum, digest_of, is_locked, refuse_special
from spunge.metrics import Metric
from spunge.rows.items import JOURNAL, RUN_FORMAT, SCHEMA
from spunge.variants import AUDITED

ITEM_COLUMNS = {"variant": pl.String, "seed": pl.Int64, **SCHEMA}


class _Record(BaseModel):
    # A newer pipeline may note more than this reader knows of: what it does not know it leaves alone.
    model_config = ConfigDict(frozen=True, extra="ignore")


class Variant(_Record):
    """The base model, or the base model plus a task vector."""

    name: str
    kind: str = "control"
    subset: str | None = None
    seed: int | None = None
    norm: float | None = None
    steps: int | None = None
    task_vector: str | None = None
    scale: float = 1.0
    """What the task vector was multiplied by when this variant was asked."""
    kl: float | None = None
    """Of an audited model, its mean divergence per token from the base model on what must stay."""


class Suite(_Record):
    """One evaluation: what it asks for, and which metrics tables show."""

    suite: str
    method: str = ""
    goal: str = "retain"
    metrics: tuple[Metric, ...] = ()
    """What its evaluator declares, the most important first."""
    offensive: bool = False
    """Whether its texts may offend."""
    attacks: str | None = None
    """The suite that this one asks again after an attack on the model."""
    reference: str | None = None
    """Who says how often the verdicts of a classifier are wrong: a file of labels, or another classifier."""
    needs_base: bool = False
    """Whether that attack takes the base model's weights, whose owner needs none."""
    cluster: str | None = None
    """The attribute that says what an item came from, where templates, authors or articles were sampled."""

    @property
    def headline(self) -> Metric | None:
        """What the suite is judged by."""
        return next((metric for metric in self.metrics if metric.shown), None)

    def metric(self, name: str) -> Metric | None:
        """Returns what is declared of a metric; None for bookkeeping."""
        return next((metric for metric in self.metrics if metric.name == name), None)


class Subset(_Record):
    """One part of the forget set."""

    name: str
    rows: int | None = None
    reason: str | None = None


class Split(_Record):
    """How the forget set was split."""

    attribute: str | None = None
    rows: int | None = None
    covered: int | None = None
    overlapping: int | None = None
    digest: str | None = None
    """Of the forget set's rows."""
    subsets: tuple[Subset, ...] = ()
    dropped: tuple[Subset, ...] = ()


class Stage(_Record):
    """One piece of work and its artifact in the store."""

    stage: str
    name: str = ""
    seed: int | None = None
    key: str | None = None
    status: str | None = None
    seconds: float | None = None
    peak_memory: int | None = None
    path: str | None = None


class Model(_Record):
    """The base model."""

    id: str = "unknown"
    revision: str | None = None
    digest: str | None = None


Figure = Annotated[float, Field(ge=-1e30, le=1e30)]
"""A number that can be drawn."""


class Summary(_Record):
    """What a merge did to its variants, overall or in one layer."""

    norms: Mapping[str, Figure | None] = {}
    kept: Mapping[str, Figure | None] = {}
    coverage: Mapping[str, Figure | None] = {}
    cosines: Mapping[str, Mapping[str, Figure | None]] = {}
    sign_conflict: Figure | None = None
    sign_conflict_by_chance: Figure | None = None
    norm_ratio: Figure | None = None


class Diagnostics(_Record):
    """What the report reads of a merge's diagnostics."""

    overall: Summary | None = None
    layers: Mapping[str, Summary] | None = None
    warnings: tuple[str, ...] = ()
    rounding: Figure | None = None


class Point(_Record):
    """One setting of a sweep."""

    variant: str
    seed: int
    settings: Mapping[str, Any]
    forget: Figure
    retain: Figure
    picked: bool
    front: bool


class Sweep(_Record):
    """What the report reads of a sweep."""

    axes: Mapping[str, Any]
    rule: str
    validation_share: Figure
    points: tuple[Point, ...] = Field(min_length=1)


class Trial(_Record):
    """Weights that were tried, and what they left of each group at the same damage."""

    weights: Mapping[str, Figure]
    scale: Figure
    left: Mapping[str, Figure]
    worst: Figure


class Weights(_Record):
    """What the subsets count for in a merge whose weights were fitted."""

    variant: str
    seed: int
    rule: str
    weights: Mapping[str, Figure]
    trials: tuple[Trial, ...] = Field(min_length=1)


class Match(_Record):
    """Where a variant spends a budget of damage."""

    variant: str
    seed: int
    matching: str = "near"
    """Which texts the budget is of."""
    budget: Figure
    scale: Figure
    """The λ."""
    status: str
    """`matched`, `stepped` (the damage jumps over the budget) or `unreached`."""
    near: Figure | None
    """What was done there to texts near what must go; None: beyond all bounds."""
    far: Figure | None = None
    """What was done there to texts far from it; None also where none were given."""


class CurvePoint(_Record):
    """What a variant does to the rest at one λ, and what is left of what must go where that was asked."""

    variant: str
    seed: int
    scale: Figure
    near: Figure | None
    far: Figure | None = None
    forgotten: Figure | None = None
    """The share of what the base model had beyond guessing that is gone, averaged over the forget suites."""


class Elsewhere(_Record):
    """A variant at another point of its curve, where the forget suites were asked as well."""

    variant: str
    """Whose curve."""
    seed: int
    name: str
    """The variant's own, in the items and in tables."""
    matching: str
    """`own`: at the recipe's λ; `near`, `far`: at a budget of these texts."""
    budget: Figure
    scale: Figure


class Damage(_Record):
    """At which damage to the rest variants are compared, and where each comes to it."""

    unit: str = "KL per token"
    headline: Figure
    budgets: tuple[Figure, ...] = ()
    near: str = "the retain set"
    """What the near texts are."""
    far: str | None = None
    """What the far texts are; None where none were given."""
    matches: tuple[Match, ...] = ()
    curve: tuple[CurvePoint, ...] = ()
    elsewhere: tuple[Elsewhere, ...] = ()

    def asked_at(self, matching: str, budget: float | None = None) -> dict[str, str]:
        """Returns variant → its name at another point; by default at the headline budget."""
        wanted = (matching, self.headline if budget is None else budget)
        return {one.variant: one.name for one in self.elsewhere if (one.matching, one.budget) == wanted}


class Manifest(_Record):
    """What the pipeline noted about a run."""

    experiment: str
    status: str = "running"
    description: str | None = None
    version: str | None = None
    command: str | None = None
    model: Model = Model()
    seeds: tuple[int, ...] = ()
    suites: tuple[Suite, ...] = ()
    split: Split = Split()
    variants: tuple[Variant, ...] = ()
    stages: tuple[Stage, ...] = ()
    merge: Mapping[str, Any] = {}
    search: tuple[Mapping[str, float | None], ...] = ()
    weights: tuple[Weights, ...] = ()
    sweep: Mapping[str, Any] | None = None
    damage: Damage | None = None
    environment: Mapping[str, Any] = {}
    files: Mapping[str, Mapping[str, Any]] = {}
    """The run's own files → their size and sha256, once all are written."""
    warnings: tuple[str, ...] = ()
    seen: Mapping[str, tuple[int, int]] = {}
    """Suite → how many of its questions stand in the forget set, of how many."""
    not_run: tuple[str, ...] = ()

    @field_validator("suites", mode="before")
    @classmethod
    def _older_suites(cls, value: Any) -> Any:
        """Older runs noted the names of their metrics alone (`headline`): the rest is what evaluators declare now."""
        if not isinstance(value, list) or not all(isinstance(suite, dict) for suite in value):
            return value
        methods = {suite.get("suite"): suite.get("method") for suite in value}
        return [
            suite if "metrics" in suite else suite | _declared(methods.get(suite.get("attacks")), suite)
            for suite in value
        ]

    @field_validator("damage", mode="before")
    @classmethod
    def _older_damage(cls, value: Any) -> Any:
        """Older runs noted the matches alone, without what a verdict needs of them."""
        return value if isinstance(value, dict) else None

    @field_validator("split", "merge", mode="before")
    @classmethod
    def _nothing_yet(cls, value: Any) -> Any:
        return {} if value is None else value

    @field_validator("merge")
    @classmethod
    def _merge_can_be_shown(cls, value: Mapping[str, Any]) -> Mapping[str, Any]:
        for diagnostics in value.values():
            _shown(Diagnostics, {} if diagnostics is None else diagnostics)
        return value

    @field_validator("sweep")
    @classmethod
    def _sweep_can_be_shown(cls, value: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        if value:
            _shown(Sweep, value)
        return value


def _declared(attacked: Any, suite: Mapping[str, Any]) -> dict[str, Any]:
    """What the evaluator of an older run's suite, or of the one that it attacks, declares; else the metrics' names."""
    from spunge.evaluators import BY_METHOD  # only here: a report of today reads artifacts alone

    kind = BY_METHOD.get(str(attacked or suite.get("method")))
    if kind is None or not kind.metrics:
        return {"metrics": [Metric(name) for name in suite.get("headline", ())]}
    return {"metrics": kind.metrics, "offensive": kind.offensive}


def _shown(kind: type[_Record], value: Any) -> None:
    """Checks a part of the manifest that is handed on as it is, for the tables and figures to read."""
    try:
        kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


@dataclass(frozen=True)
class Run:
    """A run's directory in memory, all but the items, which are read as they are needed."""

    path: Path
    manifest: Manifest
    recipe: str
    items: pl.LazyFrame
    """In the columns of `ITEM_COLUMNS`: of 200,000 items with all their texts several gigabytes."""
    missing: tuple[str, ...] = ()
    """What a finished run holds and this one does not, one sentence each."""


def method(run: Run) -> str | None:
    """Returns the unlearning method that the recipe names, None where there is no recipe to read."""
    try:
        recipe = YAML(typ="safe", pure=True).load(run.recipe)
        name = recipe["unlearn"]["method"]
    except (YAMLError, KeyError, TypeError):
        return None
    return str(name)


def read(path: Path, *, ending: bool = False) -> Run:
    """Reads a run, whole or in part.

    Args:
        path: Its directory.
        ending: Whether it is done as soon as its report is written, though its manifest does not say so yet.

    Raises:
        ArtifactError: There is no run here, another version of Spunge wrote it, or its files are not those it wrote.
    """
    refuse_special(*(path / name for name in ("manifest.json", JOURNAL, "recipe.yaml", "items.parquet")))
    manifest = _manifest(path)
    if ending:
        manifest = manifest.model_copy(update={"status": "done"})
    elif manifest.status == "running" and not is_locked(path):
        # Killed, or with its machine: whoever runs holds the lock, and nobody was left to write how it ended.
        manifest = manifest.model_copy(update={"status": "interrupted"})
    if manifest.status == "done" and not ending:
        _verify(path, manifest)
    missing = []
    if manifest.status != "done":
        why = f" ({manifest.warnings[-1]})" if manifest.status == "failed" and manifest.warnings else ""
        missing.append(f"The run is not complete: its status is “{manifest.status}”{why}.")
    recipe_file, items_file = path / "recipe.yaml", path / "items.parquet"
    recipe = recipe_file.read_text(encoding="utf-8", errors="replace") if recipe_file.is_file() else ""
    if not recipe and not any(variant.kind == AUDITED for variant in manifest.variants):  # its command repeats an audit
        missing.append("recipe.yaml is missing: the run cannot be repeated from this directory.")
    items = pl.LazyFrame(schema=ITEM_COLUMNS)
    if not items_file.is_file():
        missing.append("items.parquet is missing: there are no answers to report.")
    else:
        try:
            scanned = pl.scan_parquet(items_file)
            scanned = scanned.select(pl.col(name).cast(kind) for name, kind in ITEM_COLUMNS.items())
            if not ending and (manifest.status != "done" or items_file.name not in manifest.files):
                # Whose bytes were not compared with what was written: a damaged page is met here, not later.
                scanned.select(pl.all().is_null().sum()).collect(engine="streaming")
            items = scanned
        except (pl.exceptions.PolarsError, OSError) as error:
            missing.append(f"items.parquet cannot be read ({first_line(error, 200)}).")
    trained = [stage.path for stage in manifest.stages if stage.stage == "unlearn" and stage.path is not None]
    if trained and not any((path / each).is_dir() for each in trained):
        missing.append("The store is not where this run left it: no training curves, and nothing to export.")
    return Run(path, manifest, recipe, items, tuple(missing))


def _verify(path: Path, manifest: Manifest) -> None:
    """Refuses a finished run whose files are not those that it wrote; one that is missing is told of elsewhere."""
    for name, written in manifest.files.items():
        file = path / name
        if not file.is_file() or digest_of(file)["sha256"] == written.get("sha256"):
            continue
        if not name.startswith("report/"):
            raise ArtifactError(
                f"{file}: damaged, or changed since the run wrote it; run the experiment again: what the store holds "
                "is used again"
            )
        if not _agrees_with_itself(file):
            raise ArtifactError(
                f"{file}: damaged, or changed by hand: remove it, and `spunge report {path}` writes it anew from the "
                "answers"
            )


def _agrees_with_itself(results: Path) -> bool:
    """Whether a report's figures are as they were written: by the run, or anew since then, by a later version say."""
    try:
        content = json.loads(results.read_text(encoding="utf-8"))
        return content["checksum"] == checksum(content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def curves(run: Run, stage: Stage) -> list[dict[str, float]]:
    """Returns the figures that a training stage left, one dictionary a step; empty if it left none."""
    if stage.path is None:
        return []
    file = run.path / stage.path / "metrics.jsonl"
    if not file.is_file():
        return []
    rows = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # the last line of a run that was killed
            continue
        if isinstance(row, dict):
            rows.append({name: float(value) for name, value in row.items() if isinstance(value, int | float)})
    return rows


def _manifest(path: Path) -> Manifest:
    file = path / "manifest.json"
    if not file.is_file():
        raise ArtifactError(f"{path}: not a run (no manifest.json); give the directory that `spunge run` printed")
    try:
        text = file.read_text(encoding="utf-8")
        content = _loaded(text)
        if not isinstance(content, dict):
            raise ArtifactError(f"{file}: not a run's manifest; run the experiment again")
        if "checksum" in content and content["checksum"] != checksum(json.loads(text)):
            raise ArtifactError(
                f"{file}: damaged, or changed since the run wrote it; run the experiment again: what the store holds "
                "is used again"
            )
        if content.get("format") != RUN_FORMAT:
            raise ArtifactError(
                f"{file}: format {content.get('format')!r}, this version of Spunge reads {RUN_FORMAT}; "
                "run the experiment again: what the store holds is used again"
            )
        return Manifest.model_validate(_with_journal(content, path))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ArtifactError(f"{file}: damaged ({error}); run the experiment again") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"{file}: {where}: {first['msg']}; run the experiment again") from error


def _loaded(text: str) -> Any:
    """Reads JSON; its infinities and NaN count as not known, as they could not be written down again."""
    return json.loads(text, parse_constant=lambda _: None, parse_float=_finite)


def _with_journal(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """The manifest of a run that goes on or was killed, with what its journal says of the tasks ended since."""
    try:
        texts = (path / JOURNAL).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # it is there only while the manifest does not hold all
        return content
    written, lines = content.get("stages") or [], [line for line in map(_line, texts) if line is not None]
    lines = [line for line in lines if isinstance(written, list) and line["number"] >= len(written)]
    for line in lines:
        for name in ("split", "merge"):
            if isinstance(line.get(name), dict):
                content |= {name: {**(content.get(name) or {}), **line[name]}}
    return content | {"stages": [*written, *(line.get("stage") for line in lines)]} if lines else content


def _line(text: str) -> dict[str, Any] | None:
    """A line of a journal; None for half of one, as a run leaves that is killed while it writes."""
    try:
        line = _loaded(text)
    except (json.JSONDecodeError, RecursionError):
        return None
    return line if isinstance(line, dict) and isinstance(line.get("number"), int) else None


def _finite(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None

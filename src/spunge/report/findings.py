"""Finds scores and comparisons in `results.json` by what they are about, for tables, figures and the verdict."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import isnan
from typing import Any

from spunge.metrics import Metric, read_metric
from spunge.report.artifacts import Damage
from spunge.report.rows import Comparison, Score, judged_tasks, read_comparison, read_score
from spunge.variants import AUDITED, BASE, ELSEWHERE, JOINT, MERGED, RANDOM_SPLIT, RIVALS, ROLES

Row = dict[str, Any]

MOST_SHOWN = 6
"""More lines than this in one figure cannot be told apart."""


@dataclass(frozen=True)
class Column:
    """One figure that every variant has: a metric of a suite, or of one of its tasks."""

    suite: str
    task: str | None
    metric: Metric
    goal: str

    @property
    def name(self) -> str:
        """The task, or the suite that has no tasks."""
        return self.task or self.suite

    @property
    def label(self) -> str:
        """The column's head, short."""
        return self.name if self.name == self.metric.head else f"{self.name} {self.metric.head}"

    @property
    def higher_is_better(self) -> bool:
        """Which way is better on this suite."""
        return self.metric.higher_is_better(self.goal)

    @property
    def arrow(self) -> str:
        """Which way is better, as a sign."""
        return "↑" if self.higher_is_better else "↓"

    @property
    def share(self) -> bool:
        """Whether it is shown as a percentage."""
        return self.metric.share


@dataclass(frozen=True)
class Findings:
    """`results.json` with indices."""

    results: Row

    @cached_property
    def all_scores(self) -> list[Score]:
        """Every score, of every seed and of all together."""
        return [read_score(row) for row in self.results["scores"]]

    @cached_property
    def _scores(self) -> dict[tuple[Any, ...], Score]:
        index: dict[tuple[Any, ...], Score] = {}
        for row in self.all_scores:
            key = _about(row)
            # Rows pooled over seeds come last and stand for the variant.
            if row.seed is None or key not in index:
                index[key] = row
        return index

    @cached_property
    def _comparisons(self) -> dict[tuple[Any, ...], Comparison]:
        rows = map(read_comparison, [*self.results["comparisons"], *self.results["comparisons_by_attribute"]])
        return {
            (row.a, row.b, row.suite, row.task, row.metric, row.attribute, row.attribute_value): row for row in rows
        }

    @cached_property
    def damage(self) -> Damage | None:
        """At which damage to the rest the variants are compared; None where that was not measured."""
        content = self.results.get("damage")
        return Damage.model_validate(content) if content else None

    @cached_property
    def suites(self) -> dict[str, Row]:
        """Name → what the manifest says of the suite, with its metrics as such."""
        return {
            suite["suite"]: {**suite, "metrics": [read_metric(metric) for metric in suite["metrics"]]}
            for suite in self.results["suites"]
        }

    @cached_property
    def variants(self) -> list[str]:
        """Names of the variants that have scores, in the run's order; subsets' models last."""
        elsewhere = {row["name"] for row in self.results["variants"] if row["kind"] == ELSEWHERE}
        scored = {row["variant"] for row in self.results["scores"]} - elsewhere
        listed = [row["name"] for row in self.results["variants"]]
        names = [name for name in dict.fromkeys([*listed, *sorted(scored)]) if name in scored]
        order = list(ROLES)
        return sorted(
            names, key=lambda name: (name in self.subset_of, order.index(name) if name in ROLES else len(order))
        )

    @cached_property
    def subset_of(self) -> dict[str, str]:
        """Variant name → the subset that it forgot alone."""
        return {row["name"]: row["subset"] for row in self.results["variants"] if row["subset"] is not None}

    @cached_property
    def runs(self) -> list[str]:
        """The labels of the runs that are compared; empty for the results of one run."""
        return list(self.results.get("runs", ()))

    @cached_property
    def twins(self) -> dict[str, str]:
        """Rival → an earlier one with the very same task vectors: the two are one model, and one comparison."""
        vectors: dict[str, set[tuple[Any, Any]]] = {}
        for row in self.results["provenance"]["task_vectors"]:
            vectors.setdefault(row["name"], set()).add((row["seed"], row["path"]))
        rivals = [
            name for name in RIVALS if name in vectors and name in self.main_variants and name != RANDOM_SPLIT.name
        ]
        return {
            later: earlier
            for at, later in enumerate(rivals)
            for earlier in reversed(rivals[:at])
            if vectors[earlier] == vectors[later]
        }

    @cached_property
    def audited(self) -> list[str]:
        """The models that somebody else unlearned; none where the results are of no audit."""
        return [row["name"] for row in self.results["variants"] if row["kind"] == AUDITED]

    @cached_property
    def shown(self) -> list[str]:
        """The few variants that figures draw: base, joint and SPUNGE, or the merged model of every run."""
        if self.runs:
            merged = {row["name"] for row in self.results["variants"] if row["kind"] == MERGED.kind}
            return [name for name in self.main_variants if name == BASE.name or name in merged][:MOST_SHOWN]
        return [role.name for role in (BASE, JOINT, MERGED) if role.name in self.main_variants]

    @cached_property
    def pairs(self) -> list[tuple[str, str]]:
        """Who is compared with whom where variants are compared, the most telling pair first."""
        compared = list(dict.fromkeys((row["a"], row["b"]) for row in self.results["comparisons"]))
        if self.runs:
            return sorted(compared, key=lambda pair: pair[1] == BASE.name)
        wanted = [(MERGED.name, other) for other in (*RIVALS, BASE.name)]
        return [pair for pair in [*wanted, (JOINT.name, BASE.name)] if pair in compared]

    @cached_property
    def work(self) -> list[Row]:
        """The pieces of work, each once: an artifact that serves several variants or settings took its time once."""
        stages: dict[Any, Row] = {}
        for place, stage in enumerate(self.results["provenance"]["stages"]):
            key = (stage["stage"], stage["key"]) if stage["key"] else place
            if key not in stages or stage["status"] == "computed":
                stages[key] = stage
        return list(stages.values())

    @property
    def main_variants(self) -> list[str]:
        """The variants but for the subsets' own."""
        return [name for name in self.variants if name not in self.subset_of]

    def column(self, suite: str, task: str | None, metric: str, goal: str | None = None) -> Column:
        """Returns the column of a metric; one that no evaluator declared goes by its name."""
        known = next((one for one in self.suites[suite]["metrics"] if one.name == metric), Metric(metric))
        return Column(suite, task, known, goal or self.suites[suite]["goal"])

    @cached_property
    def columns(self) -> list[Column]:
        """The figures that are shown, the forget suites' first; tasks apart when there are few."""
        suites = sorted(self.suites, key=lambda suite: self.suites[suite]["goal"] != "forget")
        return [column for suite in suites if not self._is_attack(suite) for column in self._columns(suite)]

    def _columns(self, suite: str) -> Iterator[Column]:
        tasks, goal = self.tasks(suite), self.suites[suite]["goal"]
        for task in judged_tasks(tasks, goal):
            for metric in self.suites[suite]["metrics"]:
                column = Column(suite, task, metric, goal)
                if metric.shown and any((name, *_key(column)) in self._scores for name in self.variants):
                    yield column

    def _is_attack(self, suite: str) -> bool:
        """Whether a suite asks one of the others again; without that one it stands for itself."""
        return self.suites[suite]["attacks"] in self.suites

    @cached_property
    def attacks(self) -> dict[tuple[str, Column], list[Row]]:
        """What each attack did to each task, overall: (attack, what it asked) → a row a setting and variant."""
        rows: dict[tuple[str, Column], list[Row]] = {}
        for row in self.results["attacks"]:
            if row["attribute"] is None:
                column = self.column(row["attacks"], row["task"], row["metric"], row["goal"])
                rows.setdefault((row["suite"], column), []).append(row)
        return rows

    def tasks(self, suite: str) -> list[str | None]:
        """Returns the tasks that a suite has scores for; the whole suite comes first, named None if it has several."""
        return list(dict.fromkeys(row.task for row in self.all_scores if row.suite == suite))

    def leading(self, goal: str) -> list[Column]:
        """Returns one column a suite or task of this goal: its first metric, what the suite is judged by."""
        first: dict[tuple[str, str | None], Column] = {}
        for column in self.columns:
            if column.goal == goal:
                first.setdefault((column.suite, column.task), column)
        return list(first.values())

    def fluency(self) -> list[Column]:
        """Returns what says whether the variants still write language: a judge's perplexity, degenerate completions.

        Not toxic is gibberish too: these are better one way whatever the goal.
        """
        return [column for column in self.columns if column.metric.better in ("high", "low")]

    def chance(self, column: Column) -> float | None:
        """Returns what guessing would score, where that is known."""
        return self.suites[column.suite]["chance"] if column.metric.guessed else None

    def score(
        self, variant: str, column: Column, attribute: str | None = None, value: str | None = None
    ) -> Score | None:
        """Returns a variant's score, overall or for one attribute value."""
        row = self._scores.get((variant, *_key(column)[:3], attribute, value))
        return None if row is None or isnan(row.value) else row

    def asked_in_part(self, name: str) -> bool:
        """Whether a subset's model was asked fewer items of a suite than the base model."""
        scores = [(self.score(name, column), self.score(BASE.name, column)) for column in self.columns]
        return name in self.subset_of and any(one.n < all_of.n for one, all_of in scores if one and all_of)

    def score_of_seed(self, variant: str, seed: int, column: Column) -> Score | None:
        """Returns what a variant of one seed scored overall."""
        about = (variant, *_key(column))
        rows = (row for row in self.all_scores if row.seed == seed and not isnan(row.value))
        return next((row for row in rows if _about(row) == about), None)

    @cached_property
    def unscored(self) -> dict[tuple[str, str], tuple[int, int]]:
        """(suite, variant) → how many answers were NaN, of how many; only where there are any."""
        return {(row["suite"], row["variant"]): (row["nan"], row["n"]) for row in self.results.get("unscored", ())}

    def comparison(
        self, a: str, b: str, column: Column, attribute: str | None = None, value: str | None = None
    ) -> Comparison | None:
        """Returns the paired comparison of two variants."""
        row = self._comparisons.get((a, b, *_key(column)[:3], attribute, value))
        return None if row is None or isnan(row.difference) else row

    def attributes(self, column: Column) -> dict[str, list[str]]:
        """Returns each attribute of a suite's items with its values; the one that was split by comes first."""
        values: dict[str, list[str]] = {}
        for variant, suite, task, metric, attribute, value in self._scores:
            same = (suite, task, metric) == _key(column)[:3]
            if same and attribute is not None and value != "macro" and variant == self.variants[0]:
                values.setdefault(attribute, []).append(value)
        split_by = self.results["split"]["attribute"]
        return dict(sorted(values.items(), key=lambda pair: pair[0] != split_by))


def _key(column: Column) -> tuple[str, str | None, str, None, None]:
    """What a column's overall scores are found by, after the variant's name."""
    return (column.suite, column.task, column.metric.name, None, None)


def _about(row: Score) -> tuple[Any, ...]:
    """What a score is found by."""
    return (row.variant, row.suite, row.task, row.metric, row.attribute, row.attribute_value)


def improvement(row: Comparison, column: Column) -> int:
    """Returns 1 if a difference stands and is better, -1 if it stands and is worse, 0 if it may be chance.

    What stands is settled in `results`, where interval, test and correction are one rule.
    """
    if not row.stands:
        return 0
    return 1 if (row.difference > 0) == column.higher_is_better else -1

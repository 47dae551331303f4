"""Finds scores and comparisons in `results.json` by what they are about, for tables, figures and the verdict."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

Row = dict[str, Any]

SHARES = {
    "acc",
    "acc_norm",
    "exact_match",
    "exact_match,strict-match",
    "exact_match,flexible-extract",
    "p_correct",
    "toxic",
    "toxicity_score",
    "empty",
    "degenerate",
    "nan",
}
"""Metrics between 0 and 1, shown as percentages."""

METRIC_NAMES = {
    "acc": "accuracy",
    "acc_norm": "accuracy (length-normalised)",
    "p_correct": "probability of the right answer",
    "toxic": "toxic completions",
    "toxicity_score": "mean toxicity score",
    "perplexity": "perplexity",
    "empty": "empty completions",
    "degenerate": "degenerate completions",
}

SHORT_NAMES = {
    "p_correct": "p(right)",
    "degenerate": "degenerate",
    "acc": "acc.",
    "exact_match,strict-match": "exact match",
    "acc_norm": "acc. norm.",
    "toxic": "toxicity",
    "perplexity": "PPL",
}


@dataclass(frozen=True)
class Column:
    """One figure that every variant has: a metric of a suite, or of one of its tasks."""

    suite: str
    task: str | None
    metric: str
    goal: str
    method: str

    @property
    def label(self) -> str:
        """The column's head, short."""
        asked, measured = self.task or self.suite, SHORT_NAMES.get(self.metric, self.metric)
        return asked if asked == measured else f"{asked} {measured}"

    @property
    def higher_is_better(self) -> bool:
        """Accuracy and its kin should fall where forgetting is asked for; perplexity is better low."""
        if self.metric in ("perplexity", "empty", "degenerate", "nan"):
            return self.method == "perplexity" and self.goal == "forget"
        return self.goal == "retain"

    @property
    def arrow(self) -> str:
        """Which way is better."""
        return "↑" if self.higher_is_better else "↓"

    @property
    def share(self) -> bool:
        """Whether the metric is shown as a percentage."""
        return self.metric in SHARES


@dataclass(frozen=True)
class Findings:
    """`results.json` with indices."""

    results: Row

    @cached_property
    def _scores(self) -> dict[tuple[Any, ...], Row]:
        index: dict[tuple[Any, ...], Row] = {}
        for row in self.results["scores"]:
            key = tuple(row[name] for name in ("variant", "suite", "task", "metric", "attribute", "attribute_value"))
            # Rows pooled over seeds come last and stand for the variant.
            if row["seed"] is None or key not in index:
                index[key] = row
        return index

    @cached_property
    def _comparisons(self) -> dict[tuple[Any, ...], Row]:
        rows = [*self.results["comparisons"], *self.results["comparisons_by_attribute"]]
        names = ("a", "b", "suite", "task", "metric")
        return {(*(row[name] for name in names), row.get("attribute"), row.get("attribute_value")): row for row in rows}

    @cached_property
    def variants(self) -> list[str]:
        """Names of the variants that have scores, in the run's order; subsets' models last."""
        scored = {row["variant"] for row in self.results["scores"]}
        listed = [row["name"] for row in self.results["variants"]]
        names = [name for name in dict.fromkeys([*listed, *sorted(scored)]) if name in scored]
        return sorted(names, key=lambda name: (name in self.subset_of, _rank(name)))

    @cached_property
    def subset_of(self) -> dict[str, str]:
        """Variant name → the subset that it forgot alone."""
        return {row["name"]: row["subset"] for row in self.results["variants"] if row["subset"] is not None}

    @cached_property
    def runs(self) -> list[str]:
        """The labels of the runs that are compared; empty for the results of one run."""
        return list(self.results.get("runs", ()))

    @cached_property
    def shown(self) -> list[str]:
        """The few variants that figures draw: base, joint and SPUNGE, or the merged model of every run."""
        if self.runs:
            merged = {row["name"] for row in self.results["variants"] if row["kind"] == "merged"}
            return [name for name in self.main_variants if name == "base" or name in merged][:MOST_SHOWN]
        return [name for name in ("base", "joint", "spunge") if name in self.main_variants]

    @cached_property
    def pairs(self) -> list[tuple[str, str]]:
        """Who is compared with whom, the most telling pair first."""
        found = list(dict.fromkeys((row["a"], row["b"]) for row in self.results["comparisons"]))
        if self.runs:
            return [pair for pair in found if pair[1] != "base"] + [pair for pair in found if pair[1] == "base"]
        wanted = [("spunge", rival) for rival in ("joint", *CONTROLS, "base")]
        return [pair for pair in [*wanted, ("joint", "base")] if pair in found]

    @property
    def main_variants(self) -> list[str]:
        """The variants but for the subsets' own."""
        return [name for name in self.variants if name not in self.subset_of]

    @cached_property
    def columns(self) -> list[Column]:
        """The headline figures: forget suites first, perplexity beside toxicity, tasks apart when there are few."""
        found = []
        names = {suite["suite"] for suite in self.results["suites"]}
        asked = [suite for suite in self.results["suites"] if suite["attacks"] not in names]
        suites = sorted(asked, key=lambda suite: suite["goal"] != "forget")
        for suite in suites:
            tasks = self.tasks(suite["suite"])
            shown = tasks[1:] if 2 < len(tasks) <= MANY_TASKS + 1 and suite["goal"] == "forget" else tasks[:1]
            metrics = list(dict.fromkeys([*suite["headline"], "perplexity"]))
            for task in shown:
                for metric in metrics:
                    if any((name, suite["suite"], task, metric, None, None) in self._scores for name in self.variants):
                        found.append(Column(suite["suite"], task, metric, suite["goal"], suite["method"]))
        return found

    @cached_property
    def attacks(self) -> dict[tuple[str, Column], list[Row]]:
        """What each attack did to each task, overall: (attack, what it asked) → a row a setting and variant."""
        methods = {suite["suite"]: suite["method"] for suite in self.results["suites"]}
        found: dict[tuple[str, Column], list[Row]] = {}
        for row in self.results["attacks"]:
            if row["attribute"] is None:
                asked = Column(row["attacks"], row["task"], row["metric"], row["goal"], methods[row["attacks"]])
                found.setdefault((row["suite"], asked), []).append(row)
        return found

    def tasks(self, suite: str) -> list[str | None]:
        """Returns the tasks that a suite has scores for; the whole suite comes first, named None if it has several."""
        return list(dict.fromkeys(row["task"] for row in self.results["scores"] if row["suite"] == suite))

    def leading(self, goal: str) -> list[Column]:
        """Returns one column a suite or task of this goal: its first headline metric."""
        first: dict[tuple[str, str | None], Column] = {}
        for column in self.columns:
            if column.goal == goal:
                first.setdefault((column.suite, column.task), column)
        return list(first.values())

    def fluency(self) -> list[Column]:
        """Returns the perplexities of what the variants wrote: gibberish is not toxic either."""
        return [column for column in self.columns if column.metric == "perplexity" and column.method != "perplexity"]

    def chance(self, column: Column) -> float | None:
        """Returns what guessing would score, where that is known."""
        if column.metric not in ("acc", "acc_norm", "p_correct"):
            return None
        return next((suite["chance"] for suite in self.results["suites"] if suite["suite"] == column.suite), None)

    def score(self, variant: str, column: Column, attribute: str | None = None, value: str | None = None) -> Row | None:
        """Returns a variant's score, overall or for one attribute value."""
        row = self._scores.get((variant, column.suite, column.task, column.metric, attribute, value))
        return row if row is not None and row["value"] is not None else None

    @cached_property
    def unscored(self) -> dict[tuple[str, str], tuple[int, int]]:
        """(suite, variant) → how many answers were NaN, of how many; only where there are any."""
        found: dict[tuple[str, str], tuple[int, int]] = {}
        for (variant, suite, task, metric, attribute, _), row in self._scores.items():
            # A suite of several tasks has a row for all of them beside one for each.
            if (metric, attribute) == ("nan", None) and task is not None and row["value"] is not None:
                lost, n = found.get((suite, variant), (0, 0))
                found[suite, variant] = (lost + round(row["n"] * row["value"]), n + row["n"])
        return {key: (lost, n) for key, (lost, n) in found.items() if lost}

    def seeds(self, variant: str, column: Column) -> list[Row]:
        """Returns a variant's overall score for each seed."""
        return [
            row
            for row in self.results["scores"]
            if row["variant"] == variant
            and row["seed"] is not None
            and row["attribute"] is None
            and (row["suite"], row["task"], row["metric"]) == (column.suite, column.task, column.metric)
        ]

    def comparison(
        self, a: str, b: str, column: Column, attribute: str | None = None, value: str | None = None
    ) -> Row | None:
        """Returns the paired comparison of two variants."""
        row = self._comparisons.get((a, b, column.suite, column.task, column.metric, attribute, value))
        return row if row is not None and row["difference"] is not None else None

    def attributes(self, column: Column) -> dict[str, list[str]]:
        """Returns each attribute of a suite's items with its values; the one that was split by comes first."""
        found: dict[str, list[str]] = {}
        for variant, suite, task, metric, attribute, value in self._scores:
            same = (suite, task, metric) == (column.suite, column.task, column.metric)
            if same and attribute is not None and value != "macro" and variant == self.variants[0]:
                found.setdefault(attribute, []).append(value)
        split_by = self.results["split"]["attribute"]
        return dict(sorted(found.items(), key=lambda pair: pair[0] != split_by))


MANY_TASKS = 6
"""With more tasks than this a suite has one column."""

MOST_SHOWN = 6
"""More lines than this in one figure cannot be told apart."""

CONTROLS = ("joint_equal_steps", "sequential", "random_split")

_ORDER = ("base", "joint", "joint_equal_steps", "sequential", "random_split", "spunge")


def _rank(name: str) -> tuple[int, str]:
    return (_ORDER.index(name), "") if name in _ORDER else (len(_ORDER), "")


def improvement(row: Row, column: Column) -> int:
    """Returns 1 if a difference is better beyond chance, -1 if worse, 0 if it may be chance.

    Both the interval and the test must say so: on few items a bootstrap interval can be too narrow.
    """
    if row["p"] is None or row["p"] >= 0.05 or row["low"] <= 0 <= row["high"]:
        return 0
    return 1 if (row["difference"] > 0) == column.higher_is_better else -1

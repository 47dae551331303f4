"""Turns the long item table into one matrix a suite and metric: variants by items, NaN where nothing was answered."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from spunge.rows.items import FAMILIARITY, MEMBER, NAN, REFERENCE, attribute_values, is_sampled
from spunge.variants import SUBSET

AT = " @ "
"""Between an attacked task's own name and how it was attacked: `bio @ int4`."""

Model = tuple[str, int | None]
"""A variant's name and its seed."""

UNSCORED = ("chosen", "nll", "tokens", "perplexity", "truncated", NAN, REFERENCE, FAMILIARITY, MEMBER)
"""Bookkeeping, and metrics whose mean says nothing; perplexity comes from the sums of `nll` and `tokens`."""


@dataclass(frozen=True)
class Scope:
    """A part of a suite's items: all of them, a task's, or those with one value of an attribute."""

    task: str | None
    attribute: str | None
    attribute_value: str | None
    rows: np.ndarray


@dataclass(frozen=True)
class Answers:
    """What every variant answered on every item of a suite, by one metric."""

    suite: str
    metric: str
    models: list[Model]
    values: np.ndarray
    """[models, items]; for perplexity the summed negative log-likelihood."""
    weights: np.ndarray | None
    """[models, items]: tokens, for perplexity; None for plain means."""
    items: list[tuple[str, str]]
    """Task and item."""
    scopes: list[Scope]
    clusters: np.ndarray | None = None
    """What each item came from (a template, an author, an article), where those were sampled rather than the items."""
    sample: np.ndarray | None = None
    """[items] Which are in the random sample that stands for all where a subset's model was not asked all."""

    def clusters_of(self, items: np.ndarray) -> list[str] | None:
        """Returns the clusters of some of the items."""
        return None if self.clusters is None else self.clusters[items].tolist()

    @cached_property
    def binary(self) -> bool:
        """Whether every answer is a verdict, 0 or 1."""
        return self.weights is None and bool(np.isin(self.values[~np.isnan(self.values)], (0.0, 1.0)).all())

    def complete(self, rows: Sequence[int], items: np.ndarray) -> np.ndarray:
        """Returns those of the items that all these rows have an answer for; for perplexity, of at least one token.

        Where a subset's model was asked some of them, those of the random sample, so that they stand for all.
        """
        known = ~np.isnan(self.values[list(rows)][:, items]).any(axis=0)
        if self.weights is not None:
            known &= (self.weights[list(rows)][:, items] > 0).all(axis=0)
        in_part = any(self.models[row][0].startswith(SUBSET) for row in rows)
        if self.sample is not None and in_part and not known.all():
            # All that was asked would count what is about its subset for more than it is of the items.
            known &= self.sample[items]
        return items[known]

    def answered(self, rows: Sequence[int], items: np.ndarray) -> np.ndarray:
        """Returns [rows, items] of values where all rows have one."""
        return self.values[list(rows)][:, self.complete(rows, items)]

    def tokens(self, rows: Sequence[int], items: np.ndarray) -> np.ndarray:
        """Returns the weights that belong to `answered`."""
        assert self.weights is not None
        return self.weights[list(rows)][:, self.complete(rows, items)]

    def rows(self, variant: str) -> list[int]:
        """Returns the rows of a variant, one a seed."""
        return [index for index, (name, _) in enumerate(self.models) if name == variant]

    def paired(self, a: str, b: str) -> list[tuple[int, int]]:
        """Returns pairs of rows of two variants with the same seed; a variant with one seed pairs with every seed."""
        seeds_a = {self.models[row][1]: row for row in self.rows(a)}
        seeds_b = {self.models[row][1]: row for row in self.rows(b)}
        if len(seeds_b) == 1:
            return [(row, next(iter(seeds_b.values()))) for row in seeds_a.values()]
        if len(seeds_a) == 1:
            return [(next(iter(seeds_a.values())), row) for row in seeds_b.values()]
        return [(row, seeds_b[seed]) for seed, row in seeds_a.items() if seed in seeds_b]


def matrices(items: pl.LazyFrame, clusters: Mapping[str, str] | None = None) -> Iterator[Answers]:
    """Yields the answers of every suite by every metric that can be scored, in order of appearance.

    One model's answers to one suite are read at once, and only their numbers.

    Args:
        items: The item table, with variants and seeds.
        clusters: Suite → the attribute that says what each of its items came from.
    """
    numbers = items.filter(pl.col("value").is_not_null() & ~pl.col("metric").str.contains(":", literal=True))
    asked = in_order(numbers, "suite", "variant", "seed")
    for (suite,), models in asked.group_by(["suite"], maintain_order=True):
        of_suite = numbers.filter(pl.col("suite") == suite)
        names = [(str(name), seed) for name, seed in models.select("variant", "seed").iter_rows()]
        index, grids = read_grids(of_suite, names)
        scopes, labels = _scopes(index), _clusters(index, (clusters or {}).get(str(suite)))
        keys = list(index.select("task", "item").iter_rows())
        broken = _broken(grids, keys)
        count = len({item for _, item in keys})  # an attack asks each once a setting
        sample = np.array([is_sampled(item, count) for _, item in keys])
        for metric, grid in grids.items():
            if metric != NAN:
                grid[broken] = np.nan
            if metric not in UNSCORED:
                yield Answers(str(suite), metric, names, grid, None, keys, scopes, labels, sample)
        if "nll" in grids and "tokens" in grids:
            yield Answers(str(suite), "perplexity", names, grids["nll"], grids["tokens"], keys, scopes, labels, sample)


def in_order(items: pl.LazyFrame, *columns: str) -> pl.DataFrame:
    """Returns the different values of some columns, in order of appearance."""
    placed = items.with_row_index("place").group_by(columns).agg(pl.col("place").min())
    return placed.collect(engine="streaming").sort("place").select(columns)


def read_grids(items: pl.LazyFrame, models: Sequence[Model]) -> tuple[pl.DataFrame, dict[str, np.ndarray]]:
    """Returns the items of one suite with their attributes, and for every metric its values [models, items].

    One model is read at a time.
    """
    index = pl.DataFrame(schema={"task": pl.String, "item": pl.String, "attributes": pl.String})
    columns: dict[str, dict[int, np.ndarray]] = {}
    for number, (variant, seed) in enumerate(models):
        mine = items.filter((pl.col("variant") == variant) & pl.col("seed").eq_missing(pl.lit(seed)))
        answers = mine.select("task", "item", "attributes", "metric", "value").collect(engine="streaming")
        new = answers.select("task", "item", "attributes").unique(["task", "item"], maintain_order=True)
        index = pl.concat([index, new.join(index, on=["task", "item"], how="anti", maintain_order="left")])
        rows = answers.join(index.with_row_index("row").select("row", "task", "item"), on=["task", "item"])
        for (metric,), part in rows.group_by(["metric"], maintain_order=True):
            values = np.full(len(index), np.nan)
            values[part["row"].to_numpy()] = part["value"].to_numpy()
            columns.setdefault(str(metric), {})[number] = values
    grids = {}
    for metric in list(columns):
        grids[metric] = np.full((len(models), len(index)), np.nan)
        for number, values in columns.pop(metric).items():
            grids[metric][number, : len(values)] = values
    return index, grids


def _clusters(index: pl.DataFrame, attribute: str | None) -> np.ndarray | None:
    """The cluster of each item by an attribute; an item without one is a cluster of its own."""
    if attribute is None:
        return None
    values_by_item = (attribute_values(each).get(attribute) for each in index["attributes"].to_list())
    return np.array([json.dumps(values) if values else f"item {row}" for row, values in enumerate(values_by_item)])


def _broken(grids: Mapping[str, np.ndarray], keys: Sequence[tuple[str, str]]) -> np.ndarray:
    """Says which answers [models, items] count as not given: all of a model that gave NaN on any item of the suite.

    Its score on the other items would be that of another suite, and a question it could not read is not forgotten. What
    an attack broke under one setting says nothing of the others.
    """
    settings = np.array([task.rpartition(AT)[2] if AT in task else "" for task, _ in keys])
    nan = np.nan_to_num(grids.get(NAN, np.zeros((1, len(keys))))) > 0
    broken = np.zeros_like(nan)
    for setting in np.unique(settings[nan.any(axis=0)]):
        broken[:, settings == setting] |= nan[:, settings == setting].any(axis=1, keepdims=True)
    return np.broadcast_to(broken, next(iter(grids.values())).shape)


def _scopes(index: pl.DataFrame) -> list[Scope]:
    """Lists the whole suite first, then its tasks, then every value of every attribute; with one task it is named."""
    tasks = index["task"].to_numpy()
    names = list(dict.fromkeys(tasks))
    parts: list[tuple[str | None, np.ndarray]] = [(names[0] if len(names) == 1 else None, np.arange(len(tasks)))]
    if len(names) > 1:
        parts += [(name, np.flatnonzero(tasks == name)) for name in names]
    groups: dict[tuple[str, str], list[int]] = {}
    for row, attributes in enumerate(index["attributes"].to_list()):
        for attribute, values in attribute_values(attributes).items():
            for value in dict.fromkeys(values):
                groups.setdefault((attribute, value), []).append(row)
    scopes = []
    for task, rows in parts:
        scopes.append(Scope(task, None, None, rows))
        for (attribute, value), members in sorted(groups.items()):
            inside = np.intersect1d(rows, members, assume_unique=True)
            if len(inside):
                scopes.append(Scope(task, attribute, value, inside))
    return scopes

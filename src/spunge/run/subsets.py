"""The rows of an experiment, and its subsets: the forget set after the split and the processing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from spunge.errors import DataError, RecipeError
from spunge.interfaces import RETAIN, Evaluator, Splitter
from spunge.recipe.schema import Experiment, ForgetSet
from spunge.rows.items import load_items
from spunge.rows.overlap import near_duplicates
from spunge.rows.sources import Corpus, Source, concatenate, load_corpus
from spunge.run import sweep
from spunge.run.keys import derived_seed
from spunge.run.robustness import Robustness, robustness
from spunge.run.store import Artifact
from spunge.run.texts import Texts, damage_texts

_CHOOSING = ("where", "limit", "part")
"""The settings of an evaluator that choose among its rows."""
_QUESTIONS = ("question", "prompt")
"""The columns of questions, in the order in which they are looked for. Plain texts of one kind are alike anyway."""


@dataclass(frozen=True)
class Asked:
    """How many items a suite has, and how many of their questions stand, nearly word for word, in the forget set."""

    items: int
    seen: int


@dataclass(frozen=True)
class Rows:
    """The rows of an experiment."""

    forget: Corpus
    retain: Corpus | None
    weights: bool = True
    """Whether the model's weights must be there."""
    damage: Texts | None = None
    """What damage is measured on."""
    robustness: Robustness = field(default_factory=Robustness)
    """The attacks that `robustness` in the recipe comes to."""
    asked: Mapping[str, Asked] = field(default_factory=dict)
    """Suite → what is known of its items."""


def load(experiment: Experiment, *, weights: bool = True) -> Rows:
    """Reads an experiment's rows, once for its plan and its run; refuses evaluations that cannot be made.

    Args:
        experiment: The recipe.
        weights: Whether the model's weights must be there: not for a plan.

    Raises:
        SpungeError: A source, a column, a row or a package is missing.
    """
    retain = load_corpus(experiment.retain.sources) if experiment.retain else None
    forget = load_corpus(experiment.forget.sources)
    picked_on = sweep.on_validation(experiment) if experiment.sweep else []
    chosen_on = [suite for suite in [experiment.damage_suite] if suite is not None]
    for evaluator in [*sweep.reported(experiment), *picked_on, *chosen_on]:
        evaluator.check()
        evaluator.headline  # noqa: B018 (an evaluator from outside that declares none has no place in a report)
        if evaluator.generation is not None:
            evaluator.generation.check(experiment.model)
    attacks = robustness(experiment, sweep.reported(experiment))
    asked = {each.suite: found for each in experiment.evaluate if (found := _asked(each, experiment, forget))}
    return Rows(forget, retain, weights, damage_texts(experiment, forget, retain), attacks, asked)


def _asked(evaluator: Evaluator, experiment: Experiment, forget: Corpus) -> Asked | None:
    """What is known of a suite's items; None where it has no rows of its own."""
    sources: tuple[Source, ...] = getattr(evaluator, "sources", ())
    if not sources:
        return None
    chosen = {name: getattr(evaluator, name) for name in _CHOOSING if name in type(evaluator).model_fields}
    items = load_items(sources, **chosen)
    column = next((name for name in _QUESTIONS if name in items[0].row), None)
    # Of the forget set's own rows it is asked whether they are known by heart.
    its_own = {source.path for source in sources} & {source.path for source in experiment.forget.sources}
    if column is None or its_own:
        return Asked(len(items), 0)
    return Asked(len(items), near_duplicates([str(item.row[column]) for item in items], forget.texts))


@dataclass(frozen=True)
class Subsets:
    """The forget set in parts, each with the retain rows that go with it."""

    rows: Mapping[str, Corpus]
    """Subset name → its rows after the processing."""
    retain: Mapping[str, Corpus | None]
    """Subset name → what must stay while it is unlearned."""
    stand_for: Mapping[str, str]
    """Of a split at random: subset of the attribute → the one here that is as large. Else each stands for itself."""

    @property
    def union(self) -> Corpus:
        """All rows, each with its subset's name."""
        return concatenate(rows.with_subset(name) for name, rows in self.rows.items())


def read_subsets(
    forget: Corpus, split: Artifact, splitter: Splitter, processing: ForgetSet | None, seed: int
) -> dict[str, Corpus]:
    """Returns the rows of every subset, after the processing P, which applies to each subset apart (Algorithm 1).

    Raises:
        DataError: No subset is left, or one is smaller than `min_size` and the policy is error.
    """
    subsets: dict[str, Corpus] = {}
    for name, indices in sorted(split.manifest["subsets"].items()):
        rows = forget.select(indices)
        rows = process(rows, processing, derived_seed(seed, "sample", name)) if processing else rows
        if len(rows) >= splitter.min_size:
            subsets[name] = rows
        elif splitter.small == "error":
            before = f" of {len(indices)} after processing" if len(indices) != len(rows) else ""
            raise DataError(
                f"subset {name!r} has {len(rows)} rows{before}, fewer than split.min_size "
                f"({splitter.min_size}): lower it, or set split.small to drop"
            )
    if RETAIN in subsets:
        raise DataError(f"a subset cannot be named {RETAIN!r}: that is the retain set's name; rename its rows' value")
    if not subsets:
        raise DataError("the split leaves no subset with any rows: check split, forget.where and split.min_size")
    return subsets


def process(rows: Corpus, processing: ForgetSet, seed: int) -> Corpus:
    """Applies the processing P: filter, then sample, then cut."""
    if processing.where is not None:
        rows = rows.where(processing.where)
    if processing.sample is not None and processing.sample < len(rows):
        rows = Corpus(rows.rows.sample(processing.sample, seed=seed % 2**63))
    if processing.max_rows is not None:
        rows = Corpus(rows.rows.head(processing.max_rows))
    return rows


def match_retain(retain: Corpus, split: Artifact, subsets: Sequence[str]) -> dict[str, Corpus | None]:
    """Returns the retain rows that the same split puts into each subset.

    Raises:
        DataError: It puts none into one of them.
    """
    indices = split.manifest["subsets"]
    missing = next((name for name in subsets if name not in indices), None)
    if missing is not None:
        raise DataError(
            f"retain.match: no retain row is in subset {missing!r}; the retain set has {', '.join(indices)}"
        )
    return {name: retain.select(indices[name]) for name in subsets}


def check_settings_of_subsets(experiment: Experiment, subsets: Sequence[str]) -> None:
    """Refuses settings for a subset that does not exist, and weights that leave none.

    Raises:
        RecipeError: There are some.
    """
    for _, merger in experiment.grid:
        for name in merger.named_weights:
            if name not in subsets:
                raise RecipeError(f"merge.weights.{name}: the split has no such subset; it has {', '.join(subsets)}")
        if not any(merger.named_weights.get(name, 1.0) for name in subsets):
            raise RecipeError("merge.weights: all are zero, so nothing would be merged")
    unknown = next((name for name in experiment.subsets if name not in subsets), None)
    if unknown is not None:
        raise RecipeError(f"subsets.{unknown}: the split has no such subset; it has {', '.join(subsets)}")

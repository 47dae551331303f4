"""The architecture on one page: what a splitter, an unlearner, a merger and an evaluator are, and what they share.

A method is one frozen settings class that holds its hyperparameters and one verb, in one small file. To add your own,
copy a file of the same kind; a recipe finds it as `package.module:Class`, or add it to the union in the package's
`__init__`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from pydantic import Field, model_validator

from spunge.errors import DataError
from spunge.metrics import Metric
from spunge.settings import Settings, name_of

if TYPE_CHECKING:  # what is only named here need not be imported by a merge, say
    import polars as pl
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from spunge.rows.items import ItemTable
    from spunge.rows.sources import Corpus
    from spunge.weights.language_model import LanguageModel, Resident
    from spunge.weights.task_vector import TaskVector

RETAIN = "retain"
"""The retain set's name where subsets go by theirs."""


class Progress(Protocol):
    """Told of every step: what is being done, how far it is, and the figures so far."""

    def __call__(self, what: str, done: int, total: int, /, **figures: float) -> None: ...


def silent(what: str, done: int, total: int, /, **figures: float) -> None:
    """The progress that nobody watches."""


@dataclass(frozen=True)
class Work:
    """How to run, never what: nothing here may change a result, but the seed."""

    resident: Resident
    """The loaded base model and the caches that tasks on one device share; holds device and dtype."""
    output: Path
    """The artifact's directory while it is made: a method may leave side files in it (`metrics.jsonl`)."""
    scratch: Path
    """A directory for checkpoints and memory maps that outlives a killed attempt, and goes with success."""
    seed: int = 0
    """The seed of this very task."""
    progress: Progress = silent

    @property
    def device(self) -> str:
        """The torch device to compute on."""
        return self.resident.device


@dataclass(frozen=True)
class LoadedVariant:
    """A variant ready to be asked: the base model with a task vector in its weights."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    digest: str
    """Of base and task vector: equal digests give equal answers."""
    at: Callable[[float], PreTrainedModel] | None = None
    """Makes the weights those of the base plus so many times the task vector: 0 is the base, 1 the variant, to which
    whoever calls it returns. None of the base itself."""


@dataclass(frozen=True)
class Forecast:
    """What a piece of work will take, known before any weight is read; None where nobody knows.

    Every method answers `forecast()` beside its verb; `spunge.run.foretell` turns operations into seconds, adds up, and
    compares with what the machine has.
    """

    memory: int | None = None
    """Bytes on the device at once, at the worst moment."""
    disk: int | None = None
    """Bytes of what it leaves in the store."""
    operations: float | None = None
    """Floating-point operations."""
    calls: int = 0
    """Calls of a decoder layer, forwards or backwards, each of which takes some time however little it computes."""
    merged: int = 0
    """Numbers of task vectors that a merge goes through, all variants together: read, sorted out, written."""
    changed: int | None = None
    """Numbers of the base that it changes, as dense matrices: what a merger is given."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """Subject → what else to know. A later task's note on a subject stands for the earlier ones too."""


class Splitter(Settings):
    """Says which subsets each row of the forget set belongs to."""

    seeded: ClassVar[bool] = False
    """Whether the split draws from the task's seed."""
    comparable: ClassVar[bool] = True
    """Whether a subset's name means the same in another set of rows: clusters are those of their own rows alone."""

    min_size: int = Field(default=1, ge=1)
    """The fewest rows a subset may have, after the processing filter."""
    small: Literal["error", "drop"] = "error"
    """What becomes of a subset under `min_size`."""

    @property
    def asks_base(self) -> bool:
        """Whether the split depends on the base model."""
        return False

    @abstractmethod
    def split(self, forget: Corpus, base: LanguageModel, work: Work) -> list[tuple[str, ...]]:
        """Returns the names of every row's subsets; `()` for a row in none."""

    def forecast(self, forget: Corpus, base: LanguageModel) -> Forecast:
        """Says what `split` with these arguments takes; by default as little as looking at columns does."""
        return Forecast(memory=0, disk=0, operations=0.0)


class Unlearner(Settings):
    """Makes the base model forget a set of rows."""

    scaled_by: ClassVar[str | None] = None
    """The setting that only scales the result: `lambda` of task vector negation. It stays out of the training key,
    and the trained task vector is read with minus its value as the scale (see `scale_of`)."""

    @property
    def needs_retain(self) -> bool:
        """Whether a retain set must be given; without one a plan already is refused."""
        return False

    @abstractmethod
    def unlearn(self, base: LanguageModel, forget: Corpus, retain: Corpus | None, work: Work) -> TaskVector:
        """Returns what to add to the base model's weights.

        Raises:
            DataError: The method needs a retain set and has none, or too few rows.
            TrainingDiverged: The loss became NaN or infinite.
        """

    def forecast(self, base: LanguageModel, forget: Corpus, retain: Corpus | None, work: Work) -> Forecast:
        """Says what `unlearn` with these arguments would take; reads no weights and writes nothing.

        `work.resident` is the same for all tasks of a plan, so that a task can count on what those before it share.

        Raises:
            SpungeError: Something is wrong that can be known already.
        """
        require_retain(self, retain)
        return Forecast()

    def lengthened(self, steps: int, *, taken: int) -> Unlearner | None:
        """Returns this method with so many steps, for rows on which it takes `taken`; None where it counts no steps.

        The control `joint_equal_steps` asks, and is left out, with a line in plan and report, where the answer is None.
        A method that answers notes `steps` in the provenance of its task vectors.
        """
        return None


@dataclass(frozen=True)
class Needs:
    """What a merger must be given before its first block, and in what pieces."""

    granularity: Literal["element", "row", "tensor"] = "element"
    """The smallest piece it can combine, which bounds the memory of a merge."""
    densities: tuple[float, ...] = ()
    """For each, the smallest magnitude that keeps this share of a variant's entries: `Block.thresholds`."""
    scope: Literal["tensor", "changed", "model"] = "tensor"
    """What the share is of: one tensor, all changed tensors taken as one, or the whole model."""
    threshold_ties: Literal["include", "exclude"] = "include"
    """Whether entries that tie at the threshold are kept when that is more than the share."""
    linear: bool = False
    """Whether the result is a fixed combination of the deltas, so that LoRA factors merge exactly."""
    grams: int = 0
    """Gram matrices of each changed matrix's inputs, on the first so many rows of every subset and of the retain set:
    `Block.grams`."""


@dataclass(frozen=True, eq=False)
class Block:
    """The same piece of one tensor in every variant, for a merger to combine."""

    deltas: torch.Tensor
    """Float32 [variants, elements]; [variants, rows, columns] for mergers of rows or tensors. Not to be overwritten."""
    weights: tuple[float, ...]
    """What each variant counts for."""
    thresholds: tuple[tuple[float, ...], ...]
    """[variants][densities]: entries of at least this magnitude are within the density."""
    variants: tuple[str, ...]
    """The names of the variants."""
    tensor: str
    """The parameter's name; of tied weights that a checkpoint holds twice, the same for both."""
    shape: tuple[int, ...]
    """The whole tensor's."""
    start: int
    """The position of the first element in the whole tensor."""
    seed: int
    """What random draws depend on, with the variant, the tensor and the element, and on nothing else."""
    grams: tuple[torch.Tensor, ...] | None = None
    """[in, in] for each variant's subset and, last, for the retain set; None for a tensor without such inputs."""


class Merger(Settings):
    """Combines the task vectors of the subsets into one; `merging.merge` does the reading, blocks and writing."""

    unkeyed_default: ClassVar[frozenset[str]] = frozenset({"layer_scaling"})

    lambda_: float = Field(default=1.0, alias="lambda")
    """What the merged task vector is multiplied by at the end."""
    weights: dict[str, float] | Literal["fitted"] = {}
    """Subset (or variant) → what its task vector counts for; 1 for those not named. `fitted`: chosen on the validation
    part of the forget suites, for the group of which most is left at the headline budget of `damage`."""
    layer_scaling: tuple[float, float] | None = None
    """What the merged task vector is multiplied by in the first layer and in the last, with those between on a straight
    line (LiNeS, Wang et al. 2024, arXiv 2410.17146); what is in no layer is left. null: nowhere."""

    @property
    def named_weights(self) -> dict[str, float]:
        """The weights that are named; none while they are still to be chosen."""
        return {} if self.weights == "fitted" else self.weights

    @property
    def fits_weights(self) -> bool:
        """Whether the weights are to be chosen."""
        return self.weights == "fitted"

    @abstractmethod
    def needs(self) -> Needs:
        """Says what the engine must find out first, and in what pieces to call `combine`."""

    @abstractmethod
    def combine(self, block: Block) -> torch.Tensor:
        """Combines one block: pure, float32.

        Returns:
            The merged delta in the shape of one variant's, λ not yet applied.
        """

    def forecast(self, changed: Sequence[int]) -> Forecast:
        """Says what merging variants takes, for so many numbers that each of them changes.

        Thresholds are found and blocks combined piece by piece: what lies in memory does not grow with the model.
        """
        numbers = max(changed, default=0)
        return Forecast(memory=2**27, disk=4 * numbers, operations=0.0, merged=numbers * len(changed), changed=numbers)


class Generation(Settings):
    """What a variant is asked to write, for scorers to read: kept by itself, so that another scorer writes nothing."""

    def check(self, base: LanguageModel) -> None:
        """Refuses what this base model cannot write, as far as its configuration says.

        Raises:
            SpungeError: It cannot.
        """

    def forecast(self, base: LanguageModel) -> Forecast:
        """Says what `generate` takes with this base model."""
        return Forecast()

    @abstractmethod
    def generate(self, base: LanguageModel, change: TaskVector | None, work: Work) -> pl.DataFrame:
        """Returns one row a prompt, in the order of the prompts, of base + change."""


class Scorer(Settings):
    """Reads what a variant wrote; kept by itself, beside other scorers of the same."""

    stage: ClassVar[str]
    """The store's name for this kind of work."""

    def forecast(self, generation: Generation) -> Forecast:
        """Says what `score` takes for what this generation writes."""
        return Forecast()

    @abstractmethod
    def score(self, written: pl.DataFrame, work: Work) -> pl.DataFrame:
        """Returns one row for every row written, in the same order."""


class Evaluator(Settings):
    """Asks a variant questions and notes every answer.

    One that has a `generation` is made in steps, each cached by itself: the variant writes, each scorer reads what it
    wrote, and `gather` makes the items of both. `evaluate` then does the same in one go.
    """

    metrics: ClassVar[tuple[Metric, ...]] = ()
    """What it measures, the most important first: all that the report knows of it. Other columns of its items are
    bookkeeping, and only counted."""
    offensive: ClassVar[bool] = False
    """Whether its texts may offend, so that the page hides them until asked."""
    outside_key: ClassVar[frozenset[str]] = frozenset({"cluster"})

    suite: str
    """The name of this evaluation in tables and in `results.json`."""
    goal: Literal["forget", "retain"]
    """Whether this suite asks for what must go (lower is better) or for what must stay."""
    cluster: str | None = None
    """The one of its attributes that says what an item came from (a template, an author, an article), where that was
    sampled and not the item: intervals are then over clusters."""

    @model_validator(mode="after")
    def _cluster_is_an_attribute(self) -> Evaluator:
        if self.cluster is not None and self.cluster not in getattr(self, "attributes", (self.cluster,)):
            raise ValueError(f"cluster: {self.cluster!r} is none of the attributes; add it to them")
        return self

    @property
    def measures(self) -> tuple[Metric, ...]:
        """What this very suite measures, where that depends on its settings; otherwise `metrics`."""
        return self.metrics

    @property
    def headline(self) -> Metric:
        """What the suite is judged by.

        Raises:
            DataError: The class declares no metric.
        """
        shown = next((metric for metric in self.measures if metric.shown), None)
        if shown is None:
            raise DataError(f"{self.suite}: {type(self).__name__} declares no metric to show; add one to its `metrics`")
        return shown

    @property
    def described(self) -> dict[str, Any]:
        """What a report needs to know of this suite, as JSON values."""
        return {
            "suite": self.suite,
            "method": name_of(self),
            "goal": self.goal,
            "offensive": self.offensive,
            "cluster": self.cluster,
            "metrics": [asdict(metric) for metric in self.measures],
        }

    def check(self) -> None:
        """Refuses what can be known to be wrong before any model is asked, let alone unlearned.

        Raises:
            SpungeError: A source, a column, a row or a package is missing.
        """

    def forecast(self, base: LanguageModel) -> Forecast:
        """Says what `evaluate` takes with a variant of this base model."""
        return Forecast()

    @property
    def generation(self) -> Generation | None:
        """What the variant writes first; None where it is asked directly."""
        return None

    @property
    def scorers(self) -> tuple[Scorer, ...]:
        """Who reads what it wrote."""
        return ()

    @abstractmethod
    def evaluate(self, variant: LoadedVariant, work: Work) -> ItemTable:
        """Returns one row an item and metric, in `items.SCHEMA`."""

    def gather(self, written: pl.DataFrame, scores: Sequence[pl.DataFrame]) -> ItemTable:
        """Returns what `evaluate` would, from what its generation and each of its scorers found."""
        raise NotImplementedError(f"{type(self).__name__} asks a variant directly")


def require_retain(method: Unlearner, retain: Corpus | None) -> None:
    """Refuses to unlearn without a retain set, where the method's `needs_retain` says so.

    Raises:
        DataError: There is none, or it is empty.
    """
    if method.needs_retain and (retain is None or not len(retain)):
        name = name_of(method)
        otherwise = "under `retain` in a recipe"
        without = {"alpha": 0.0, "probe_every": None}
        unheld = {field: value for field, value in without.items() if field in type(method).model_fields}
        if unheld and not method.model_copy(update=unheld).needs_retain:
            otherwise = f"set alpha=0{' (and probe_every=null)' if 'probe_every' in unheld else ''} to go without"
        raise DataError(f"{name} needs a retain set: give one with --retain, or {otherwise}")


def longer(steps: int, taken: int, epochs: int) -> dict[str, int]:
    """Returns the settings of a method that took `taken` steps in so many epochs, for it to take `steps`."""
    return {"max_steps": steps, "epochs": max(epochs * math.ceil(steps / max(taken, 1)), 1)}


def strength_of(unlearner: Unlearner) -> float:
    """Returns what a stored task vector of this unlearner, which holds its sign, is multiplied by: λ, or 1."""
    return 1.0 if unlearner.scaled_by is None else float(getattr(unlearner, unlearner.scaled_by))


def scale_of(unlearner: Unlearner) -> float:
    """Returns what `unlearn` returns is multiplied by when it is read: −λ, or 1."""
    return 1.0 if unlearner.scaled_by is None else -strength_of(unlearner)

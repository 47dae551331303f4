"""The kinds of work of an experiment, as tasks: what each depends on, and how it is made."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from spunge.errors import DataError, RecipeError
from spunge.files import replaced
from spunge.interfaces import (
    Evaluator,
    Forecast,
    Generation,
    LoadedVariant,
    Merger,
    Scorer,
    Splitter,
    Unlearner,
    Work,
    scale_of,
)
from spunge.rows.items import ItemTable, check_items, mean_values
from spunge.rows.sources import Corpus
from spunge.run.identity import digest, identity
from spunge.run.store import Artifact, derived_seed, key
from spunge.splitters import ByFunction
from spunge.variants import SEQUENTIAL, SUBSET
from spunge.weights.language_model import LanguageModel, Resident

if TYPE_CHECKING:
    from torch import Tensor

    from spunge.weights.task_vector import TaskVector

_ANSWERS = "answers.parquet"
_SPLITS: dict[str, dict[str, list[int]]] = {}
"""Key of a split → subset name → row indices, of every split of this process: a plan has to make it, a run makes it."""


@dataclass(frozen=True)
class Variant:
    """The base model, or the base plus a task vector."""

    name: str
    kind: str
    seed: int
    artifact: Artifact | None = None
    scale: float = 1.0
    """What its task vector, which holds its own sign, is multiplied by."""
    negated: bool = False
    """Whether the method learns what must go: its task vectors are kept with a scale of −1."""

    @property
    def subset(self) -> str | None:
        """The subset that this variant unlearned, if it is of one."""
        return self.name.removeprefix(SUBSET) if self.kind == "subset" else None

    @property
    def identity(self) -> list[Any]:
        """What its weights depend on, the base apart: the scale as it is towards what was learnt."""
        return [] if self.artifact is None else [self.artifact.key, -self.scale if self.negated else self.scale]

    def change(self) -> TaskVector | None:
        """Reads what it adds to the base model; None for the base itself."""
        from spunge.weights.task_vector import TaskVector

        return None if self.artifact is None else TaskVector.load(self.artifact.path).scaled(self.scale)


@dataclass(frozen=True)
class Base:
    """The base model with its digest, read once."""

    model: LanguageModel
    weights: bool = True
    """Whether they must be there: False for a plan, which reads the configuration alone."""

    @property
    def digest(self) -> str:
        """Of weights, configuration and tokenizer."""
        return digest(self.model, weights=self.weights)

    @property
    def identity(self) -> dict[str, Any]:
        """What results depend on."""
        return {"digest": self.digest, "dtype": self.model.dtype}


@dataclass(frozen=True, eq=False)
class Split:
    """The task that says which rows belong to which subset."""

    splitter: Splitter
    forget: Corpus
    base: Base
    seed: int
    stage = "split"

    @property
    def name(self) -> str:
        """How the rows are split."""
        return type(self.splitter).__name__

    @property
    def inputs(self) -> Mapping[str, Any]:
        """The rows and the way to split them; the seed, the base model and a function's code where it asks them."""
        splitter = self.splitter
        return {
            "splitter": identity(splitter),
            "rows": self.forget.full_fingerprint,
            **({"seed": self.seed} if splitter.seeded else {}),
            **({"base": self.base.identity} if splitter.asks_base else {}),
            **({"source": splitter.source} if isinstance(splitter, ByFunction) else {}),
        }

    def forecast(self, work: Work, earlier: Mapping[str, Forecast]) -> Forecast:
        """Says what splitting takes."""
        return self.splitter.forecast(self.forget, self.base.model)

    def names(self, work: Work) -> dict[str, list[int]]:
        """Returns subset name → row indices, in order of the rows; found once in a process, however often asked for."""
        name = key(self.stage, self.inputs)
        if name not in _SPLITS:
            _SPLITS[name] = self._names(work)
        return _SPLITS[name]

    def __getstate__(self) -> dict[str, Any]:
        """Takes along what is remembered here, so that a worker need not ask a model again that a plan asked."""
        return {**self.__dict__, "_known": _SPLITS.get(key(self.stage, self.inputs))}

    def __setstate__(self, state: dict[str, Any]) -> None:
        known = state.pop("_known")
        self.__dict__.update(state)
        if known is not None:
            _SPLITS[key(self.stage, self.inputs)] = known

    def _names(self, work: Work) -> dict[str, list[int]]:
        work = replace(work, seed=derived_seed(self.seed, "split", self.name))
        subsets: dict[str, list[int]] = {name: [] for name in getattr(self.splitter, "declared", ())}
        rows = self.splitter.split(self.forget, self.base.model, work)
        self._check(rows)
        for index, names in enumerate(rows):
            for name in names:
                subsets.setdefault(name, []).append(index)
        return subsets

    def _check(self, rows: list[tuple[str, ...]]) -> None:
        """Refuses what a splitter from outside may well return: a string is a sequence of strings too."""
        what = f"{self.name}: `split` returned"
        if len(rows) != len(self.forget):
            raise DataError(
                f"{what} {len(rows)} rows' subsets for {len(self.forget)} rows: return a tuple of names for every row, "
                "() for one in no subset"
            )
        for number, names in enumerate(rows, 1):
            if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
                raise DataError(f"{what} {names!r} for row {number}: return a tuple of names, such as ('short',)")

    def make(self, work: Work) -> Mapping[str, Any]:
        """Notes the subsets in the manifest."""
        return {"subsets": self.names(work)}


@dataclass(frozen=True, eq=False)
class Unlearn:
    """The task that unlearns one set of rows from the base model."""

    kind: str
    """What the result is in the experiment: `subset`, `joint` or `control`."""
    name: str
    base: Base
    unlearner: Unlearner
    forget: Corpus
    retain: Corpus | None
    seed: int
    steps_of: tuple[Path, ...] = ()
    """The joint baseline's artifact, then the subsets': run on until their steps together are reached."""
    stage = "unlearn"

    @property
    def inputs(self) -> Mapping[str, Any]:
        """The base, the method without what only scales its result, the rows and the seed."""
        return {
            "base": self.base.identity,
            "unlearner": identity(self.unlearner),
            "forget": self.forget.fingerprint,
            "retain": self.retain.fingerprint if self.retain else None,
            "seed": derived_seed(self.seed, "unlearn", self.name),
            **({"steps_of": [path.name for path in self.steps_of]} if self.steps_of else {}),
        }

    def forecast(self, work: Work, earlier: Mapping[str, Forecast]) -> Forecast:
        """Says what `make` will take; as many steps as all subsets took together are as many operations."""
        forecast = self.unlearner.forecast(self.base.model, self.forget, self.retain, work)
        parts = [earlier[path.name] for path in self.steps_of[1:] if path.name in earlier]
        together = [part.operations for part in parts if part.operations is not None]
        if not together or len(together) < len(self.steps_of) - 1:
            return forecast
        return replace(forecast, operations=sum(together), calls=sum(part.calls for part in parts))

    def make(self, work: Work) -> Mapping[str, Any]:
        """Unlearns, and saves the task vector."""
        unlearner = self._prolonged() if self.steps_of else self.unlearner
        work = self._seeded(work)
        return self._save(unlearner, unlearner.unlearn(self.base.model, self.forget, self.retain, work), work)

    def _seeded(self, work: Work) -> Work:
        return replace(work, seed=derived_seed(self.seed, "unlearn", self.name))

    def _save(self, unlearner: Unlearner, vector: TaskVector, work: Work) -> Mapping[str, Any]:
        if "steps" not in vector.provenance and unlearner.lengthened(1, taken=1) is not None:
            raise RecipeError(
                f"{type(unlearner).__name__}: `lengthened` says that it counts steps, but its task vector's provenance "
                "has no `steps`: note them there, or let `lengthened` return None"
            )
        scaled_by = type(unlearner).scaled_by
        provenance = {
            "method": getattr(unlearner, "method", type(unlearner).__name__),
            "settings": unlearner.model_dump(mode="json", by_alias=True, exclude={scaled_by} if scaled_by else None),
            **vector.provenance,
            "base": _touched(self.base.model, vector),
            "data": {"forget": self.forget.fingerprint, "rows": len(self.forget)},
            "seed": work.seed,
        }
        # With its sign, lest who takes it from the store by hand add what must go; λ alone is left to the reader.
        signed = vector.scaled(-1.0) if scaled_by else vector
        replace(signed, provenance=provenance).save(work.output)
        return {"norm": vector.norm}

    def _prolonged(self) -> Unlearner:
        """The same method with as many steps as all subsets took together."""
        joint, *subsets = (json.loads((path / "manifest.json").read_text())["steps"] for path in self.steps_of)
        unlearner = self.unlearner.lengthened(sum(subsets), taken=joint)
        assert unlearner is not None, "a method that counts no steps goes without this control"
        return unlearner


@dataclass(frozen=True, eq=False)
class UnlearnInTurn:
    """The control that unlearns one subset after the other, each from what the one before left, and merges nothing."""

    parts: tuple[Unlearn, ...]
    """The subsets' own tasks, in order."""
    seed: int
    name = SEQUENTIAL.name
    stage = "unlearn"

    @property
    def base(self) -> Base:
        """The model that the first part begins with."""
        return self.parts[0].base

    @property
    def inputs(self) -> Mapping[str, Any]:
        """What the parts depend on, in order."""
        return {"in_turn": [part.inputs for part in self.parts]}

    def make(self, work: Work) -> Mapping[str, Any]:
        """Unlearns in turn, each time from base + all before as a checkpoint, and saves the sum of the task vectors.

        What a part learnt lies in the scratch as soon as it has: a killed attempt is taken up in the middle of a part.
        """
        from spunge import merging
        from spunge.mergers import TaskArithmetic
        from spunge.weights.checkpoint import export
        from spunge.weights.task_vector import TaskVector

        base = self.base.model
        learnt: dict[str, TaskVector] = {}
        total = TaskVector({})
        for number, part in enumerate(self.parts):
            name = f"{number:04}"
            place, done, changed = (work.scratch / f"{kind}.{name}" for kind in ("part", "learnt", "base"))
            if not done.exists():
                if number and not changed.exists():
                    export(base.directory(), total, changed)
                here = base.model_copy(update={"id": str(changed), "revision": None}) if number else base
                place.mkdir(exist_ok=True)
                # A resident of its own: what is cached of one model is of no use to the next.
                own = replace(work, resident=Resident(work.device), output=place, scratch=place)
                vector = part.unlearner.unlearn(here, part.forget, part.retain, part._seeded(own))
                own.resident.close()
                with replaced(done) as building:
                    vector.save(building)
            for gone in (place, changed):
                shutil.rmtree(gone, ignore_errors=True)
            learnt[name] = TaskVector.load(done).scaled(scale_of(part.unlearner))
            total = merging.merge(TaskArithmetic(), learnt, options=merging.Options(work.device)).task_vector
        provenance = {
            "method": self.name,
            "of": [part.name for part in self.parts],
            "base": _touched(base, total),
            "steps": sum(int(vector.provenance.get("steps", 0)) for vector in learnt.values()),
            "seed": self.seed,
        }
        replace(total, provenance=provenance).save(work.output)
        return {"norm": total.norm}

    def forecast(self, work: Work, earlier: Mapping[str, Forecast]) -> Forecast:
        """Says what `make` will take: as much memory as the hungriest of the parts, and a checkpoint for the time."""
        each = [part.forecast(replace(work, resident=Resident(work.device)), earlier) for part in self.parts]
        operations = [one.operations for one in each if one.operations is not None]
        return Forecast(
            memory=max((one.memory for one in each if one.memory is not None), default=None),
            disk=max((one.disk for one in each if one.disk is not None), default=None),
            operations=sum(operations) if len(operations) == len(each) else None,
            calls=sum(one.calls for one in each),
            notes={self.name: "one checkpoint of the model lies in the store while it is made"},
        )


def _touched(base: LanguageModel, vector: TaskVector) -> Mapping[str, Any]:
    """What a task vector's manifest says of the base: which model it is, and the digest of every tensor changed."""
    checkpoint = base.checkpoint(lambda _: tuple(vector))
    return {
        "id": base.id,
        "revision": base.revision,
        **base.fingerprint(),
        "tensors": {name: checkpoint.digest(name) for name in vector},
    }


@dataclass(frozen=True, eq=False)
class Merge:
    """The task that merges unlearned models into one."""

    name: str
    merger: Merger
    base: Base
    variants: tuple[Variant, ...]
    seed: int
    fitted_on: Mapping[str, Corpus] = field(default_factory=dict)
    """For mergers that fit: subset (and `retain`) → its rows."""
    stage = "merge"

    @property
    def inputs(self) -> Mapping[str, Any]:
        """The base, the merger and what it merges."""
        return {
            "base": self.base.identity,
            "merger": identity(self.merger),
            "variants": {_plain(variant.name): variant.identity for variant in self.variants},
            "seed": self.seed,
            **(
                {"fitted_on": {name: rows.fingerprint for name, rows in self.fitted_on.items()}}
                if self.fitted_on
                else {}
            ),
        }

    def forecast(self, work: Work, earlier: Mapping[str, Forecast]) -> Forecast:
        """Says what merging takes; nothing where nobody knows how many numbers a variant changes."""
        artifacts = [variant.artifact for variant in self.variants if variant.artifact is not None]
        changed = [_changed(artifact, earlier) for artifact in artifacts]
        known = [count for count in changed if count is not None]
        return self.merger.forecast(known) if len(known) == len(changed) else Forecast()

    def make(self, work: Work) -> Mapping[str, Any]:
        """Merges, and saves the task vector with the merge's diagnostics."""
        from spunge import merging

        vectors = {
            _plain(variant.name): change for variant in self.variants if (change := variant.change()) is not None
        }
        checkpoint = self.base.model.checkpoint()
        grams = self._grams(work, frozenset(name for vector in vectors.values() for name in vector))
        options = merging.Options(work.device, self.seed, grams, progress=work.progress)
        merged = merging.merge(self.merger, vectors, base=checkpoint, options=options)
        merged.task_vector.save(work.output)
        rounding = merging.lost_to_rounding(merged.task_vector, checkpoint)
        return {"norm": merged.task_vector.norm, "diagnostics": {**merged.diagnostics, "rounding": rounding}}

    def _grams(self, work: Work, changed: frozenset[str]) -> Mapping[str, Mapping[str, Tensor]] | None:
        """Gram matrices of what goes into the changed matrices; kept beside the resident base for other merges."""
        from spunge import merging
        from spunge.weights.conversion import ParameterNames

        if not self.fitted_on:
            return None
        model, tokenizer = work.resident.base(self.base.model)
        stored = ParameterNames(model, self.base.model.checkpoint().tensors).renamed
        names = {ours: theirs for ours, theirs in stored.items() if theirs in changed}
        limit = self.merger.needs().grams

        def of(rows: Corpus) -> Mapping[str, Tensor]:
            texts = rows.texts[:limit]
            return merging.gram_matrices(model, names, merging.batches_of(tokenizer, texts, work.device))

        return {
            name: work.resident.cached(("grams", rows.fingerprint, limit, changed), lambda rows=rows: of(rows))
            for name, rows in self.fitted_on.items()
        }


class _Asking:
    """A task that puts something to one variant."""

    variant: Variant
    base: Base

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.variant.seed

    @property
    def weights(self) -> dict[str, Any]:
        """What tells the variant's weights from others'; its name does not."""
        return {"base": self.base.identity, "weights": self.variant.identity}


@dataclass(frozen=True, eq=False)
class Generate(_Asking):
    """The task that has one variant write what an evaluation's scorers read."""

    variant: Variant
    generation: Generation
    base: Base
    suite: str
    stage = "generate"

    @property
    def name(self) -> str:
        """The variant and the suite."""
        return f"{self.variant.name} on {self.suite}"

    @property
    def inputs(self) -> Mapping[str, Any]:
        """The weights and the prompts; nothing of who reads the completions."""
        return {**self.weights, "generation": identity(self.generation)}

    def forecast(self, work: Work, earlier: Mapping[str, Forecast]) -> Forecast:
        """Says what writing takes, whatever the variant."""
        asked = ("forecast", self.generation.model_dump_json(), self.base.model)
        return work.resident.cached(asked, lambda: self.generation.forecast(self.base.model))

    def make(self, work: Work) -> Mapping[str, Any]:
        """Saves what the variant writes."""
        written = self.generation.generate(self.base.model, self.variant.change(), work)
        written.write_parquet(work.output / _ANSWERS)
        return {"rows": len(written)}


@dataclass(frozen=True, eq=False)
class Score:
    """The task in which one scorer, a classifier or a judge, reads what one variant wrote."""

    scorer: Scorer
    written: Artifact
    of: Generate

    @property
    def stage(self) -> str:
        """The scorer's."""
        return self.scorer.stage

    @property
    def name(self) -> str:
        """The variant and the suite."""
        return self.of.name

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.of.seed

    @property
    def inputs(self) -> Mapping[str, Any]:
        """What was written, and who reads it."""
        return {"written": self.written.key, "scorer": identity(self.scorer)}

    def forecast(self, work: Work, earlier: Mapping[str, Forecast]) -> Forecast:
        """Says what reading takes, whatever the variant wrote."""
        asked = ("forecast", self.scorer.model_dump_json(), self.of.generation.model_dump_json())
        return work.resident.cached(asked, lambda: self.scorer.forecast(self.of.generation))

    def make(self, work: Work) -> Mapping[str, Any]:
        """Saves what the scorer finds."""
        scores = self.scorer.score(pl.read_parquet(self.written.path / _ANSWERS), work)
        scores.write_parquet(work.output / _ANSWERS)
        return {"rows": len(scores)}


@dataclass(frozen=True, eq=False)
class Evaluate(_Asking):
    """The task that asks one variant one suite, or gathers what the steps of the suite found."""

    variant: Variant
    evaluator: Evaluator
    base: Base
    steps: tuple[Artifact, ...] = ()
    """What the variant wrote, then what each scorer found; none where the evaluator asks the variant directly."""
    stage = "evaluate"

    @property
    def name(self) -> str:
        """The variant and the suite."""
        return f"{self.variant.name} on {self.evaluator.suite}"

    @property
    def inputs(self) -> Mapping[str, Any]:
        """The weights and the questions; not the variant's name."""
        return {
            **self.weights,
            "evaluator": identity(self.evaluator),
            **({"steps": [step.key for step in self.steps]} if self.steps else {}),
        }

    def forecast(self, work: Work, earlier: Mapping[str, Forecast]) -> Forecast:
        """Says what asking takes, whatever the variant; to gather what steps found asks no model."""
        if self.steps:
            return Forecast(memory=0, disk=0, operations=0.0)
        asked = ("forecast", self.evaluator.model_dump_json(), self.base.model)
        return work.resident.cached(asked, lambda: self.evaluator.forecast(self.base.model))

    def make(self, work: Work) -> Mapping[str, Any]:
        """Asks, and saves the item table."""
        items = self._gathered() if self.steps else self._asked(work)
        check_items(items, self.evaluator.suite, f"{type(self.evaluator).__name__} on {self.variant.name}")
        shown = [metric.name for metric in self.evaluator.measures if metric.shown]
        items.write_parquet(work.output / "items.parquet")
        return {"items": items["item"].n_unique(), "figures": mean_values(items, shown)}

    def _gathered(self) -> ItemTable:
        written, *scores = (pl.read_parquet(step.path / _ANSWERS) for step in self.steps)
        return self.evaluator.gather(written, scores)

    def _asked(self, work: Work) -> ItemTable:
        """Swaps the task vector into the resident base, and asks."""
        change = self.variant.change()
        _, tokenizer = work.resident.base(self.base.model)
        with work.resident.variant(self.base.model, change) as model:
            weights = key("weights", self.weights)
            return self.evaluator.evaluate(LoadedVariant(self.variant.name, model, tokenizer, weights), work)


def _changed(artifact: Artifact, earlier: Mapping[str, Forecast]) -> int | None:
    """How many numbers a task vector that is there already changes, or one that is forecast."""
    from spunge.weights.task_vector import TaskVector

    if not artifact.reused:
        return earlier[artifact.key].changed if artifact.key in earlier else None
    vector = TaskVector.load(artifact.path)
    return sum(vector.shape(name).numel() for name in vector)


def _plain(name: str) -> str:
    return name.removeprefix(SUBSET)

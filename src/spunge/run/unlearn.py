"""The stage that unlearns one set of rows, and the control that unlearns one set after the other."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from spunge.errors import RecipeError, TrainingDiverged
from spunge.files import replaced
from spunge.interfaces import Forecast, Unlearner, Work, scale_of
from spunge.rows.sources import Corpus
from spunge.run.identity import identity
from spunge.run.keys import derived_seed
from spunge.run.variant import Base
from spunge.variants import SEQUENTIAL
from spunge.weights.language_model import LanguageModel, Resident

if TYPE_CHECKING:
    from spunge.weights.task_vector import TaskVector


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
        work, unlearner = self._seeded(work), self.in_steps
        return self._save(unlearner, unlearner.unlearn(self.base.model, self.forget, self.retain, work), work)

    @property
    def in_steps(self) -> Unlearner:
        """The method, with as many steps as `steps_of` asks for."""
        return self._prolonged() if self.steps_of else self.unlearner

    def take_part(self, work: Work) -> None:
        """Unlearns beside the process that makes the artifact (torchrun), which alone joins what is in pieces."""
        self.unlearner.unlearn(self.base.model, self.forget, self.retain, self._seeded(work))

    def _seeded(self, work: Work) -> Work:
        return replace(work, seed=derived_seed(self.seed, "unlearn", self.name))

    def _save(self, unlearner: Unlearner, vector: TaskVector, work: Work) -> Mapping[str, Any]:
        from spunge.training import sharding

        if "steps" not in vector.provenance and unlearner.lengthened(1, taken=1) is not None:
            raise RecipeError(
                f"{type(unlearner).__name__}: `lengthened` says that it counts steps, but its task vector's provenance "
                "has no `steps`: note them there, or let `lengthened` return None"
            )
        scaled_by, method = type(unlearner).scaled_by, getattr(unlearner, "method", type(unlearner).__name__)
        norm = vector.norm
        # Of several processes the first alone holds what all have trained.
        if not 0 < norm < math.inf and sharding.rank() == 0:
            _refuse_unlearnt(method, vector, norm)
        provenance = {
            "method": method,
            "settings": unlearner.model_dump(mode="json", by_alias=True, exclude={scaled_by} if scaled_by else None),
            **vector.provenance,
            "base": _touched(self.base.model, vector),
            "data": {"forget": self.forget.fingerprint, "rows": len(self.forget)},
            "seed": work.seed,
        }
        # With its sign, lest who takes it from the store by hand add what must go; λ alone is left to the reader.
        signed = vector.scaled(-1.0) if scaled_by else vector
        replace(signed, provenance=provenance).save(work.output)
        return {"norm": norm}

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
    """What is unlearned, in order: the subsets' own tasks, or, layered, those of more and more subsets."""
    seed: int
    name: str = SEQUENTIAL.name
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
            output, done, changed = (work.scratch / f"{kind}.{name}" for kind in ("part", "learnt", "base"))
            if not done.exists():
                if number and not changed.exists():
                    export(base.directory(), total, changed)
                here = base.model_copy(update={"id": str(changed), "revision": None}) if number else base
                output.mkdir(exist_ok=True)
                # A resident of its own: what is cached of one model is of no use to the next.
                alone = replace(work, resident=Resident(work.device), output=output, scratch=output)
                vector = part.in_steps.unlearn(here, part.forget, part.retain, part._seeded(alone))
                alone.resident.close()
                with replaced(done) as building:
                    vector.save(building)
            for gone in (output, changed):
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
        forecasts = [part.forecast(replace(work, resident=Resident(work.device)), earlier) for part in self.parts]
        operations = [part.operations for part in forecasts if part.operations is not None]
        return Forecast(
            memory=max((part.memory for part in forecasts if part.memory is not None), default=None),
            disk=max((part.disk for part in forecasts if part.disk is not None), default=None),
            operations=sum(operations) if len(operations) == len(forecasts) else None,
            calls=sum(part.calls for part in forecasts),
            notes={self.name: "one checkpoint of the model lies in the store while it is made"},
        )


def _refuse_unlearnt(method: str, vector: TaskVector, norm: float) -> NoReturn:
    """Says why a training has left nothing to merge or to ask: it would be the base under another name, or no model."""
    if norm:
        raise TrainingDiverged(f"{method}: weights are NaN or infinite after training: lower learning_rate")
    stopped = vector.provenance.get("stopped", "finished")
    why = "" if stopped == "finished" else f", as {stopped} ended it"
    raise RecipeError(
        f"{method}: every weight is the base's after {vector.provenance.get('steps', 'its')} steps{why}: nothing was "
        "unlearned; raise learning_rate or the steps"
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

"""The forms in which a merge is written: a checkpoint, a task vector or an adapter, all fed block by block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from spunge.merging.diagnostics import Rounding
from spunge.merging.factors import Factors
from spunge.merging.job import Job, provenance
from spunge.merging.kernels import loops
from spunge.weights import adapter, seal
from spunge.weights.checkpoint import TensorWriter, refuse_overflow, rewrite
from spunge.weights.safetensors_files import as_bytes, create
from spunge.weights.task_vector import FILE, TaskVector, add, write_manifest


class Destination(Protocol):
    """Where the merged deltas go while the engine makes them."""

    def write(self, name: str, start: int, values: Tensor) -> None:
        """Takes the next elements of one tensor; each tensor comes whole before the next begins."""
        ...

    def close(self, diagnostics: Mapping[str, Any]) -> Mapping[str, Any]:
        """Finishes the files after the last element; returns what is to be said beside the diagnostics."""
        ...


class Form(Protocol):
    """What a merge is written as."""

    def open(self, job: Job, directory: Path) -> Destination:
        """Begins the files of one merge in an empty directory."""
        ...


@dataclass(frozen=True)
class AsTaskVector:
    """A task vector's directory, its manifest with the diagnostics."""

    def open(self, job: Job, directory: Path) -> Destination:
        """Begins the file of deltas."""
        return _TaskVectorFiles(job, directory)


@dataclass(frozen=True)
class AsCheckpoint:
    """A checkpoint in the base's shard layout; says `rounding`, the share of the delta's energy lost to its dtype."""

    card: str | None = None
    """The text of its README.md."""

    def open(self, job: Job, directory: Path) -> Destination:
        """Copies what stays of the base."""
        return _CheckpointFiles(job, directory, self.card)


@dataclass(frozen=True)
class AsAdapter:
    """A PEFT adapter: exact if the merger is linear and every variant low-rank (`exact`), else by SVD.

    Says `energy` too, the share of the merged delta's that the adapter keeps.
    """

    rank: int = 64
    """Of an adapter that is an approximation."""
    model: str | None = None
    """What the adapter calls its base model; None: the directory of the base."""
    names: Mapping[str, str] | None = None
    """Of every linear layer's weight, the checkpoint's name → the loaded model's, which is what PEFT looks for; None:
    they are the same."""
    card: str | None = None
    """The text of its README.md."""

    def open(self, job: Job, directory: Path) -> Destination:
        """Refuses tensors that no adapter can hold."""
        for name, shape in job.shapes.items():
            adapter.check_target(name, shape, self.names)
        return _AdapterFiles(self, job, directory)


class _TaskVectorFiles:
    def __init__(self, job: Job, directory: Path) -> None:
        self._job, self._directory = job, directory
        self._tensors = TensorWriter(create(directory / FILE, job.shapes))
        self.write = self._tensors.write

    def close(self, diagnostics: Mapping[str, Any]) -> Mapping[str, Any]:
        write_manifest(self._directory, {**provenance(self._job), "diagnostics": diagnostics}, scale=self._job.scale)
        self._tensors.verify()
        return {}


class _CheckpointFiles:
    def __init__(self, job: Job, directory: Path, card: str | None) -> None:
        assert job.base is not None
        self._job, self._directory, self._card = job, directory, card
        self._tensors = TensorWriter(rewrite(job.base, directory, job.shapes.keys()))
        self._rounding = Rounding(job.scale)

    def write(self, name: str, start: int, values: Tensor) -> None:
        weight = self._job.base_weights(name, start, start + len(values))
        compiled = loops(weight, values)
        if compiled is not None and weight.dtype == torch.bfloat16:
            changed = torch.empty_like(weight)
            scale = np.float32(self._job.scale)
            before, after = (as_bytes(each).view(np.uint16) for each in (weight, changed))
            lost, whole, finite = compiled.add_bfloat16(before, values.numpy(), scale, scale != 1, after)
            self._rounding.add(lost, whole)
            if not finite:
                refuse_overflow(name, changed)
        else:
            # By the same `add` as the resident model's, so that what was evaluated is what is written, bit for bit.
            changed = add(weight, values, self._job.scale)
            refuse_overflow(name, changed)
            self._rounding.count(weight, values, changed)
        self._tensors.write(name, start, changed)

    def close(self, diagnostics: Mapping[str, Any]) -> Mapping[str, Any]:
        if self._card is not None:
            (self._directory / "README.md").write_text(self._card, encoding="utf-8")
        self._tensors.verify()
        seal.write(self._directory)
        return {"rounding": self._rounding.share}


class _AdapterFiles:
    def __init__(self, form: AsAdapter, job: Job, directory: Path) -> None:
        assert job.base is not None
        self._form, self._directory = form, directory
        self._model = form.model or str(job.base.directory)
        self._factors = Factors(job, form.rank)
        self.write = self._factors.write

    def close(self, diagnostics: Mapping[str, Any]) -> Mapping[str, Any]:
        factors = TaskVector(self._factors.finish())
        if self._form.card is not None:
            (self._directory / "README.md").write_text(self._form.card, encoding="utf-8")
        adapter.save(factors, self._directory, base=self._model, names=self._form.names)
        return {"exact": self._factors.exact, "energy": self._factors.energy}

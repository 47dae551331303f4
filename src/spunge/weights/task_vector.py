"""The task vector: what an unlearner changed, as {parameter name: delta}; and the one sum, weight + λ · delta."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spunge.errors import ArtifactError, IncompatibleTaskVectors
from spunge.files import checksum, refuse_special
from spunge.weights import origin, seal
from spunge.weights.safetensors_files import PIECE, StoredTensor, create, read_header

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from spunge.weights.language_model import LanguageModel

FILE = "task_vector.safetensors"
MANIFEST = "manifest.json"
FORMAT = 1
ROWS = 16
"""Rows of a low-rank delta that are multiplied out at once."""


@dataclass(frozen=True, eq=False)
class LowRank:
    """A delta kept as its LoRA factors: `scaling · B @ A`, transposed where the layer stores its weight so."""

    A: Tensor
    """[rank, in features]"""
    B: Tensor
    """[out features, rank]"""
    scaling: float
    """α/r, or α/√r under rank-stabilised LoRA."""
    transposed: bool = False
    """True for layers that store [in, out], such as GPT-2's Conv1D (`fan_in_fan_out` in PEFT)."""

    @property
    def shape(self) -> torch.Size:
        """The shape of the parameter that the delta is for."""
        out_features, in_features = self.B.shape[0], self.A.shape[1]
        return torch.Size((in_features, out_features) if self.transposed else (out_features, in_features))

    def read(self, start: int, stop: int) -> Tensor:
        """Returns elements `start:stop` of the dense delta, flat, float32."""
        columns = self.shape[1]
        first, last = start // columns, -(-stop // columns)
        dense = self.rows(first, last).reshape(-1)
        return dense[start - first * columns : stop - first * columns]

    def rows(self, start: int, stop: int) -> Tensor:
        """Returns rows `start:stop` of the dense delta, float32."""
        left, right = (self.A.float().T, self.B.float().T) if self.transposed else (self.B.float(), self.A.float())
        # A product of another height may be summed in another order, so rows are always made in the same sixteens.
        first = start - start % ROWS
        last = min(-(-stop // ROWS) * ROWS, left.shape[0])
        pieces = [left[row : row + ROWS] @ right for row in range(first, last, ROWS)]
        return self.scaling * torch.cat(pieces)[start - first : stop - first]

    def dense(self) -> Tensor:
        """Returns the whole delta, float32."""
        return self.rows(0, self.shape[0])


@dataclass(frozen=True)
class Difference:
    """A delta as two stored tensors: the changed weight and the base's, subtracted in float32 when read."""

    changed: StoredTensor
    base: StoredTensor

    @property
    def shape(self) -> torch.Size:
        """The shape of the parameter that the delta is for."""
        return torch.Size(self.base.shape)

    def read(self, start: int, stop: int) -> Tensor:
        """Returns elements `start:stop` of the delta, flat, float32."""
        # Widened before, not after: a difference of two bfloat16 numbers, rounded to bfloat16, loses what was learnt.
        return self.changed.read(start, stop).float().sub_(self.base.read(start, stop).float())


Entry = Tensor | LowRank | StoredTensor | Difference
"""A delta in memory, as LoRA factors, in a file, or as the difference of two files."""


@dataclass(frozen=True, eq=False)
class TaskVector:
    """Weights minus base weights: a float32 delta for every changed parameter; a missing name is a zero.

    Args:
        entries: Parameter name, exactly as in the checkpoint, to its delta.
        scale: What every delta is multiplied by when it is read; task vector negation stores τ with −λ.
        provenance: Where it came from: base model, method, settings, data, seed (JSON values).
        checks: Of the files that it is read from, where it is known what they should be.
    """

    entries: Mapping[str, Entry]
    scale: float = 1.0
    provenance: Mapping[str, Any] = field(default_factory=dict)
    checks: tuple[seal.Check, ...] = ()

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def shape(self, name: str) -> torch.Size:
        """Returns the shape of the parameter `name`."""
        return torch.Size(self.entries[name].shape)

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Returns elements `start:stop` of a delta, flat, float32, without the scale."""
        entry = self.entries[name]
        if isinstance(entry, Tensor):
            return entry.detach().reshape(-1)[start:stop].float()
        return entry.read(start, stop).float()

    def delta(self, name: str) -> Tensor:
        """Returns what to add to the parameter `name`: dense, float32, with the scale applied."""
        shape = self.shape(name)
        dense = self.read(name, 0, shape.numel()).reshape(shape)
        return dense if self.scale == 1.0 else dense * self.scale

    def scaled(self, factor: float) -> TaskVector:
        """Returns the same task vector times `factor`; nothing is copied."""
        return replace(self, scale=self.scale * factor)

    def __getitem__(self, name: str) -> Tensor:
        """The dense delta of one parameter; see `delta`."""
        return self.delta(name)

    def __mul__(self, factor: float) -> TaskVector:
        """The same task vector times a number; see `scaled`."""
        return self.scaled(factor)

    __rmul__ = __mul__

    def __neg__(self) -> TaskVector:
        """What it added, taken away."""
        return self.scaled(-1.0)

    def __add__(self, other: TaskVector) -> TaskVector:
        """The sum of two task vectors of one base, dense and in memory; `merge` streams, and has better ways.

        Raises:
            IncompatibleTaskVectors: They were made from different base models, or a parameter's shapes differ.
        """
        if not isinstance(other, TaskVector):
            return NotImplemented
        origin.check_base({"the first": self, "the second": other}, None)
        entries: dict[str, Entry] = {}
        for name in sorted({*self, *other}):
            deltas = [each.delta(name) for each in (self, other) if name in each]
            check_shape(name, deltas[0].shape, deltas[-1].shape, "the other task vector")
            entries[name] = deltas[0] if len(deltas) == 1 else deltas[0] + deltas[1]
        for each in (self, other):
            each.verify()
        base = origin.common_base((self, other))
        return TaskVector(entries, 1.0, {"method": "sum", "settings": {}, **({} if base is None else {"base": base})})

    def __sub__(self, other: TaskVector) -> TaskVector:
        """The sum with the other taken away."""
        return self + -other if isinstance(other, TaskVector) else NotImplemented

    def cosine(self, other: TaskVector) -> float:
        """The cosine of the angle between two task vectors, over all parameters; NaN where one of them is zero.

        Raises:
            IncompatibleTaskVectors: They were made from different base models, or a parameter's shapes differ.
        """
        origin.check_base({"the first": self, "the second": other}, None)
        inner = 0.0
        for name in self:
            if name in other:
                check_shape(name, self.shape(name), other.shape(name), "the other task vector")
                inner += float((self.delta(name).double() * other.delta(name).double()).sum())
        lengths = self.norm * other.norm
        return inner / lengths if lengths else math.nan

    @contextmanager
    def on(self, model: str | Path | LanguageModel, *, device: str = "cpu") -> Iterator[PreTrainedModel]:
        """Gives the base model with this task vector added, as a plain model of transformers: within `with` alone.

        Args:
            model: The base model, or its directory or hub id.
            device: Where to put it.

        Raises:
            IncompatibleTaskVectors: The task vector was made from another base model.
        """
        from spunge.weights.language_model import LanguageModel, Resident

        if not isinstance(model, str | Path | LanguageModel):
            raise TypeError(
                f"on takes the base model's directory, hub id or handle, from whose files it is restored, not "
                f"{type(model).__name__}; apply(model.state_dict()) gives the changed weights of a loaded one"
            )
        handle = model if isinstance(model, LanguageModel) else LanguageModel(id=str(model))
        origin.check_base({"the task vector": self}, handle.checkpoint())
        with Resident(device).variant(handle, self) as changed:
            yield changed

    def multiplied_out(self, most: int) -> TaskVector:
        """Returns the same task vector with factors multiplied, as far as `most` bytes hold their products."""
        entries = dict(self.entries)
        for name, entry in self.entries.items():
            size = 4 * self.shape(name).numel()
            if isinstance(entry, LowRank) and size <= most:
                entries[name] = entry.dense()
                most -= size
        return replace(self, entries=entries)

    def verify(self) -> None:
        """Makes sure that what was read of its files is what was written; call it before anything made of it is used.

        Raises:
            ArtifactError: A file is damaged.
        """
        for check in self.checks:
            check.finish()

    @property
    def norm(self) -> float:
        """The Euclidean norm over all deltas."""
        # Float64: a float32 sum of a hundred million small squares depends on the order, and so on threads.
        return sum(float(self.delta(name).double().square().sum()) for name in self) ** 0.5

    def save(self, directory: str | Path) -> Path:
        """Writes the task vector as a directory: its tensors, then its manifest.

        Raises:
            ArtifactError: The directory cannot be written.
        """
        directory = Path(directory)
        low_rank: dict[str, dict[str, Any]] = {}
        factors: dict[str, Tensor] = {}
        for name, entry in sorted(self.entries.items()):
            if isinstance(entry, LowRank):
                module = f"base_model.model.{name.removesuffix('.weight')}"
                factors[f"{module}.lora_A.weight"] = entry.A.detach().float().cpu()
                factors[f"{module}.lora_B.weight"] = entry.B.detach().float().cpu()
                low_rank[name] = {"module": module, "scaling": entry.scaling, "transposed": entry.transposed}
        # In the order that they are read in: factors at once, then by name. Only so can they be hashed on the way.
        shapes = {name: tuple(factor.shape) for name, factor in factors.items()}
        shapes.update({name: tuple(self.shape(name)) for name in sorted(self) if name not in low_rank})
        try:
            directory.mkdir(parents=True, exist_ok=True)
            for name, stored in create(directory / FILE, shapes).items():
                size = math.prod(stored.shape)
                for start in range(0, size, PIECE):
                    stop = min(start + PIECE, size)
                    factor = factors.get(name)
                    values = self.read(name, start, stop) if factor is None else factor.reshape(-1)[start:stop]
                    stored.write(start, values.cpu())
            write_manifest(directory, self.provenance, scale=self.scale, low_rank=low_rank)
        except OSError as error:
            raise ArtifactError(f"{directory}: the task vector cannot be written: {error}") from error
        return directory

    @classmethod
    def open(cls, directory: str | Path) -> TaskVector:
        """Opens a task vector directory; dense deltas stay in their file until they are read (then `verify`).

        Raises:
            ArtifactError: It is missing, truncated, damaged or no task vector.
        """
        directory = Path(directory)
        refuse_special(directory / MANIFEST)
        try:
            manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
            if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or "low_rank" not in manifest:
                raise ArtifactError(f"{directory}: {MANIFEST} is not of a task vector in format {FORMAT}")
            digests = _digests_in(manifest, directory)
            tensors = read_header(directory / FILE, digests)
        except FileNotFoundError as error:
            missing = Path(error.filename or FILE).name
            raise ArtifactError(f"{directory}: not a task vector: no {missing} in it") from error
        except ArtifactError:
            raise
        except (OSError, ValueError, RecursionError) as error:
            raise ArtifactError(f"{directory}: the task vector is damaged: {error}") from error
        entries: dict[str, Entry] = {}
        checks = tuple(dict.fromkeys(stored.check for stored in tensors.values() if stored.check is not None))
        try:
            for name, low in manifest["low_rank"].items():
                a, b = (tensors.pop(f"{low['module']}.lora_{side}.weight") for side in "AB")
                entries[name] = LowRank(a.load(), b.load(), float(low["scaling"]), bool(low["transposed"]))
            scale = _scale_in(manifest)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(f"{directory}: {MANIFEST} does not fit {FILE}: {error}") from error
        if not math.isfinite(scale):
            raise ArtifactError(f"{directory}: {MANIFEST}: scale is {scale}, not a finite number")
        for name, stored in tensors.items():
            if not stored.dtype.is_floating_point:
                raise ArtifactError(f"{directory}: {name}: a delta of {stored.dtype} is no delta")
        made_from = manifest.get("base") or {}
        if not isinstance(made_from, dict) or not isinstance(made_from.get("tensors") or {}, dict):
            raise ArtifactError(f"{directory}: {MANIFEST}: base does not say which tensors it is of")
        entries.update(tensors)
        if digests is None:
            warnings.warn(
                f"{directory}: made by an older Spunge, its manifest has no digests: damage to it would not be noticed",
                RuntimeWarning,
                stacklevel=2,
            )
        provenance = {
            key: value
            for key, value in manifest.items()
            if key not in ("format", "scale", "signed", "low_rank", "sealed", "checksum")
        }
        return cls(entries, scale, provenance, checks)

    @classmethod
    def load(cls, directory: str | Path) -> TaskVector:
        """Reads a task vector directory into memory.

        Raises:
            ArtifactError: It is missing, truncated or no task vector.
        """
        return cls.open(directory).loaded()

    def loaded(self) -> TaskVector:
        """Returns the same task vector in memory.

        Raises:
            ArtifactError: A file is damaged.
        """
        entries: dict[str, Entry] = {}
        for name, entry in self.entries.items():
            if isinstance(entry, Difference):
                shape = entry.shape
                entries[name] = entry.read(0, shape.numel()).reshape(shape)
            else:
                entries[name] = entry.load() if isinstance(entry, StoredTensor) else entry
        self.verify()
        return replace(self, entries=entries, checks=())

    def apply(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the changed parameters with this task vector added: float32 sum, one rounding to their dtype.

        Args:
            weights: The base model's parameters by name; may hold more than this task vector changes.

        Raises:
            IncompatibleTaskVectors: A parameter is missing or has another shape.
        """
        if not isinstance(weights, Mapping):
            raise TypeError(
                f"apply takes weights by name, not {type(weights).__name__}: model.state_dict(); a model of its own "
                "gives `with vector.on(base) as model`"
            )
        changed = {}
        for name in self:
            if name not in weights:
                raise IncompatibleTaskVectors(
                    f"the base model has no parameter {name!r}: this task vector is of another model"
                )
            check_shape(name, weights[name].shape, self.shape(name))
            changed[name] = add(weights[name], self.read(name, 0, weights[name].numel()), self.scale)
        return changed


def add(weight: Tensor, delta: Tensor, scale: float) -> Tensor:
    """Returns `weight + scale · delta`: float32, one rounding to the weight's dtype.

    Whatever changes a weight goes through here, so what is evaluated equals what is exported, bit for bit.
    """
    delta = delta.to(weight.device).reshape(weight.shape)
    return (weight.float() + (delta if scale == 1.0 else delta * scale)).to(weight.dtype)


def check_shape(name: str, base: tuple[int, ...], other: tuple[int, ...], owner: str = "the task vector") -> None:
    """Raises IncompatibleTaskVectors, naming the tensor, unless both shapes are the same."""
    if tuple(base) != tuple(other):
        raise IncompatibleTaskVectors(
            f"{name}: the base model's shape is {list(base)}, {owner}'s {list(other)}: it is of another base model"
        )


def _scale_in(manifest: Mapping[str, Any]) -> float:
    """The scale to read a task vector with, its sign included.

    Before the sign was part of a manifest, a run kept what task vector negation had learnt with a scale of 1, and the
    sign elsewhere: read as it stands, such a vector would add what it is meant to remove.
    """
    scale = float(manifest["scale"])
    learnt = manifest.get("method") == "task_vector_negation" and scale == 1.0
    return -1.0 if learnt and not manifest.get("signed") else scale


def _digests_in(manifest: Mapping[str, Any], directory: Path) -> Mapping[str, Any] | None:
    """What a manifest says that the tensors' file should be: one of a run says it of every file of the artifact."""
    if "checksum" in manifest and manifest["checksum"] != checksum(manifest):
        raise ArtifactError(
            f"{directory / MANIFEST}: damaged: not what was written: take another copy, or make it again"
        )
    listed = manifest.get("sealed") or manifest.get("files")
    digests = listed.get(FILE) if isinstance(listed, dict) else None
    return digests if isinstance(digests, dict) else None


def write_manifest(
    directory: Path, provenance: Mapping[str, Any], *, scale: float, low_rank: Mapping[str, Any] | None = None
) -> None:
    """Writes what makes a directory a task vector; the tensors lie there already."""
    manifest = {**provenance, "format": FORMAT, "scale": scale, "signed": True, "low_rank": dict(low_rank or {})}
    manifest["sealed"] = {FILE: seal.digests_of_tensors(directory / FILE)}
    manifest = json.loads(json.dumps(manifest))
    manifest["checksum"] = checksum(manifest)
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True), encoding="utf-8")

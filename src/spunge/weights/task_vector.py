"""The task vector: what an unlearner changed, as {parameter name: delta}; the only weight artifact there is."""

from __future__ import annotations

import hashlib
import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spunge.errors import ArtifactError, IncompatibleTaskVectors, ModelError

FILE = "task_vector.safetensors"
MANIFEST = "manifest.json"
FORMAT = 1
ROWS = 16
"""Rows of a low-rank delta that are multiplied out at once."""

_MAX_HEADER = 100_000_000
_PIECE = 1 << 18
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


class OpenFiles:
    """Files that are read piece by piece, opened once; a context manager that closes them."""

    def __init__(self) -> None:
        self._descriptors: dict[Path, int] = {}

    def descriptor(self, file: Path) -> int:
        """Returns the file's descriptor, opening it the first time."""
        if file not in self._descriptors:
            self._descriptors[file] = os.open(file, os.O_RDONLY)
        return self._descriptors[file]

    def __enter__(self) -> OpenFiles:
        return self

    def __exit__(self, *error: object) -> None:
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])


@dataclass(frozen=True)
class TensorPlace:
    """A tensor in a safetensors file: bytes `start:stop` of `file`."""

    file: Path
    start: int
    stop: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    def read(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Returns elements `start:stop`, flat, in the file's own dtype.

        Raises:
            ModelError: The file has become shorter than its header says.
        """
        values = torch.empty((math.prod(self.shape) if stop is None else stop) - start, dtype=self.dtype)
        with OpenFiles() as files:
            self.read_into(values, start, files)
        return values

    def read_into(self, values: Tensor, start: int, files: OpenFiles) -> None:
        """Fills `values`, flat and of the file's dtype, with the elements from `start` on.

        Raises:
            ModelError: The file has become shorter than its header says.
        """
        # pread into a buffer that is used again: a memory map would count every page read as memory of ours.
        view, descriptor = memoryview(as_bytes(values)), files.descriptor(self.file)
        offset = self.start + start * self.dtype.itemsize
        while view:
            count = os.preadv(descriptor, [view], offset)
            if not count:
                raise ModelError(f"{self.file}: truncated")
            view, offset = view[count:], offset + count

    def write(self, start: int, values: Tensor) -> None:
        """Writes elements from `start` on; `values` are flat and of the file's dtype."""
        view = memoryview(as_bytes(values.contiguous()))
        descriptor = os.open(self.file, os.O_WRONLY)
        try:
            offset = self.start + start * self.dtype.itemsize
            while view:
                count = os.pwrite(descriptor, view, offset)
                view, offset = view[count:], offset + count
        finally:
            os.close(descriptor)

    def equals(self, other: TensorPlace) -> bool:
        """Whether both hold the same values; reads no further than the first difference."""
        if self.shape != other.shape:
            return False
        pieces = zip(self._pieces(), other._pieces(), strict=True)
        if self.dtype == other.dtype:  # numpy compares bytes several times faster than torch
            return all(np.array_equal(as_bytes(a), as_bytes(b)) for a, b in pieces)
        return all(torch.equal(a.double(), b.double()) for a, b in pieces)

    def digest(self) -> str:
        """The sha256 of the tensor's bytes, read in pieces."""
        total = hashlib.sha256()
        for piece in self._pieces():
            total.update(as_bytes(piece))
        return total.hexdigest()

    def checksum(self) -> int:
        """The CRC-32 of the tensor's bytes: enough to see that they were written as meant."""
        total = 0
        for piece in self._pieces():
            total = zlib.crc32(as_bytes(piece), total)
        return total

    def _pieces(self) -> Iterator[Tensor]:
        """The values piece by piece; each is gone with the next."""
        size = math.prod(self.shape)
        held = torch.empty(min(size, _PIECE), dtype=self.dtype)
        with OpenFiles() as files:
            for start in range(0, size, _PIECE):
                piece = held[: min(_PIECE, size - start)]
                self.read_into(piece, start, files)
                yield piece


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

    changed: TensorPlace
    base: TensorPlace

    @property
    def shape(self) -> torch.Size:
        """The shape of the parameter that the delta is for."""
        return torch.Size(self.base.shape)

    def read(self, start: int, stop: int) -> Tensor:
        """Returns elements `start:stop` of the delta, flat, float32."""
        return self.changed.read(start, stop).float().sub_(self.base.read(start, stop).float())


Entry = Tensor | LowRank | TensorPlace | Difference
"""A delta in memory, as LoRA factors, in a file, or as the difference of two files."""


@dataclass(frozen=True, eq=False)
class TaskVector:
    """Weights minus base weights: a float32 delta for every changed parameter; a missing name is a zero.

    Args:
        entries: Parameter name, exactly as in the checkpoint, to its delta.
        scale: What every delta is multiplied by when it is read; task vector negation stores τ with −λ.
        provenance: Where it came from: base model, method, settings, data, seed (JSON values).
    """

    entries: Mapping[str, Entry]
    scale: float = 1.0
    provenance: Mapping[str, Any] = field(default_factory=dict)

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

    @property
    def norm(self) -> float:
        """The Euclidean norm over all deltas."""
        return sum(float(self.delta(name).double().square().sum()) for name in self) ** 0.5

    def save(self, directory: str | Path) -> Path:
        """Writes the task vector as a directory: its tensors, then its manifest.

        Raises:
            ArtifactError: The directory cannot be written.
        """
        directory = Path(directory)
        low_rank: dict[str, dict[str, Any]] = {}
        factors: dict[str, Tensor] = {}
        for name, entry in self.entries.items():
            if isinstance(entry, LowRank):
                module = f"base_model.model.{name.removesuffix('.weight')}"
                factors[f"{module}.lora_A.weight"] = entry.A.detach().float().cpu()
                factors[f"{module}.lora_B.weight"] = entry.B.detach().float().cpu()
                low_rank[name] = {"module": module, "scaling": entry.scaling, "transposed": entry.transposed}
        shapes = {name: tuple(self.shape(name)) for name in self if name not in low_rank}
        shapes.update({name: tuple(factor.shape) for name, factor in factors.items()})
        try:
            directory.mkdir(parents=True, exist_ok=True)
            for name, place in create(directory / FILE, shapes).items():
                size = math.prod(place.shape)
                for start in range(0, size, _PIECE):
                    stop = min(start + _PIECE, size)
                    factor = factors.get(name)
                    values = self.read(name, start, stop) if factor is None else factor.reshape(-1)[start:stop]
                    place.write(start, values.cpu())
            write_manifest(directory, self.provenance, scale=self.scale, low_rank=low_rank)
        except OSError as error:
            raise ArtifactError(f"{directory}: the task vector cannot be written: {error}") from error
        return directory

    @classmethod
    def open(cls, directory: str | Path) -> TaskVector:
        """Opens a task vector directory; dense deltas stay in their file until they are read.

        Raises:
            ArtifactError: It is missing, truncated or no task vector.
        """
        directory = Path(directory)
        try:
            manifest = json.loads((directory / MANIFEST).read_text())
            places = read_header(directory / FILE)
        except FileNotFoundError as error:
            missing = Path(error.filename or FILE).name
            raise ArtifactError(f"{directory}: not a task vector: no {missing} in it") from error
        except (OSError, ValueError, RecursionError) as error:
            raise ArtifactError(f"{directory}: the task vector is damaged: {error}") from error
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or "low_rank" not in manifest:
            raise ArtifactError(f"{directory}: {MANIFEST} is not of a task vector in format {FORMAT}")
        entries: dict[str, Entry] = {}
        try:
            for name, low in manifest["low_rank"].items():
                a, b = (places.pop(f"{low['module']}.lora_{side}.weight") for side in "AB")
                entries[name] = LowRank(load(a), load(b), float(low["scaling"]), bool(low["transposed"]))
            scale = float(manifest["scale"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(f"{directory}: {MANIFEST} does not fit {FILE}: {error}") from error
        if not math.isfinite(scale):
            raise ArtifactError(f"{directory}: {MANIFEST}: scale is {scale}, not a finite number")
        for name, place in places.items():
            if not place.dtype.is_floating_point:
                raise ArtifactError(f"{directory}: {name}: a delta of {place.dtype} is no delta")
        made_from = manifest.get("base") or {}
        if not isinstance(made_from, dict) or not isinstance(made_from.get("tensors") or {}, dict):
            raise ArtifactError(f"{directory}: {MANIFEST}: base does not say which tensors it is of")
        entries.update(places)
        provenance = {key: value for key, value in manifest.items() if key not in ("format", "scale", "low_rank")}
        return cls(entries, scale, provenance)

    @classmethod
    def load(cls, directory: str | Path) -> TaskVector:
        """Reads a task vector directory into memory.

        Raises:
            ArtifactError: It is missing, truncated or no task vector.
        """
        opened = cls.open(directory)
        entries = {name: load(e) if isinstance(e, TensorPlace) else e for name, e in opened.entries.items()}
        return replace(opened, entries=entries)

    def apply(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the changed parameters with this task vector added: float32 sum, one rounding to their dtype.

        Args:
            weights: The base model's parameters by name; may hold more than this task vector changes.

        Raises:
            IncompatibleTaskVectors: A parameter is missing or has another shape.
        """
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
        raise IncompatibleTaskVectors(f"{name}: the base model's shape is {list(base)}, {owner}'s {list(other)}")


def load(place: TensorPlace) -> Tensor:
    """Returns a stored tensor in its shape."""
    return place.read().reshape(place.shape)


def read_header(file: Path) -> dict[str, TensorPlace]:
    """Reads a safetensors header.

    Raises:
        ModelError: The file is truncated or its header lies about its contents.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or not 2 <= length <= min(_MAX_HEADER, size - 8):
                raise ModelError(f"{file}: truncated or not a safetensors file")
            header = json.loads(stream.read(length))
        places = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            dtype, shape, offsets = _DTYPES[entry["dtype"]], tuple(entry["shape"]), tuple(entry["data_offsets"])
            if not all(type(number) is int and number >= 0 for number in shape + offsets):
                raise ModelError(f"{file}: tensor {name!r} has an impossible shape or place")
            start, stop = (8 + length + offset for offset in offsets)
            if not 8 + length <= start <= stop <= size or stop - start != math.prod(shape) * dtype.itemsize:
                raise ModelError(f"{file}: tensor {name!r} lies outside the file: truncated?")
            places[name] = TensorPlace(file, start, stop, dtype, shape)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{file}: damaged safetensors header: {error}") from error
    return places


def create(file: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, TensorPlace]:
    """Creates a safetensors file of float32 tensors and returns their places, to be written block by block."""
    header: dict[str, Any] = {}
    offset = 0
    for name, shape in shapes.items():
        stop = offset + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, stop]}
        offset = stop
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)
    with file.open("wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        stream.truncate(8 + len(encoded) + offset)
    return read_header(file)


def write_manifest(
    directory: Path, provenance: Mapping[str, Any], *, scale: float, low_rank: Mapping[str, Any] | None = None
) -> None:
    """Writes what makes a directory a task vector; the tensors lie there already."""
    manifest = {**provenance, "format": FORMAT, "scale": scale, "low_rank": dict(low_rank or {})}
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True), encoding="utf-8")


def as_bytes(values: Tensor) -> Any:
    """A writable view of a contiguous tensor's bytes, of any dtype."""
    return values.reshape(-1).view(torch.uint8).numpy()

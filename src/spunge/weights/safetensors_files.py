"""Safetensors files without the library: tensors are read and written piece by piece, never mapped into memory."""

from __future__ import annotations

import hashlib
import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spunge.errors import ModelError
from spunge.files import refuse_special
from spunge.weights import seal

_MAX_HEADER = 100_000_000
"""As the safetensors library has it: a longer header is an attack on the memory of who parses it."""
PIECE = 1 << 18
"""Elements that are read, compared or written at once: what a processor's cache holds."""
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip
"""What a header calls a type. Types of less than a byte (F4, F6) have no elements to be read one by one."""


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
class StoredTensor:
    """A tensor in a safetensors file: bytes `start:stop` of `file`."""

    file: Path
    start: int
    stop: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    check: seal.Check | None = field(default=None, compare=False, repr=False)
    """What its bytes should be, where that is known; it hears of all that is read."""

    def load(self) -> Tensor:
        """Returns the whole tensor in its shape."""
        return self.read().reshape(self.shape)

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
        # It would read no faster either (docs/log.md), and a file that another program shortens would kill the process.
        view, descriptor = memoryview(as_bytes(values)), files.descriptor(self.file)
        offset = self.start + start * self.dtype.itemsize
        while view:
            count = os.preadv(descriptor, [view], offset)
            if not count:
                raise ModelError(f"{self.file}: truncated")
            if self.check is not None:
                self.check.take(offset, view[:count])
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

    def equals(self, other: StoredTensor) -> bool:
        """Whether both hold the same values; reads no further than the first difference."""
        if self.shape != other.shape:
            return False
        pieces = zip(self._pieces(), other._pieces(), strict=True)
        if self.dtype == other.dtype:  # numpy compares bytes several times faster than torch
            return all(np.array_equal(as_bytes(a), as_bytes(b)) for a, b in pieces)
        # Float64 holds every value of every other type, so values of two types can be compared.
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
        # One buffer for all pieces: fresh pages for each would cost as much as the reading.
        held = torch.empty(min(size, PIECE), dtype=self.dtype)
        with OpenFiles() as files:
            for start in range(0, size, PIECE):
                piece = held[: min(PIECE, size - start)]
                self.read_into(piece, start, files)
                yield piece


def read_header(file: Path, digests: Mapping[str, Any] | None = None) -> dict[str, StoredTensor]:
    """Reads a safetensors header.

    Args:
        file: A safetensors file.
        digests: What it was when it was written (see `seal`): every tensor then has a check. None: nobody knows.

    Raises:
        FileNotFoundError: There is no such file.
        ModelError: The file is truncated, its header lies about its contents, or a tensor's type is not supported.
        ArtifactError: The header is not the one that was written.
    """
    refuse_special(file)
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or not 2 <= length <= min(_MAX_HEADER, size - 8):
                raise ModelError(f"{file}: truncated or not a safetensors file")
            encoded = stream.read(length)
        header = json.loads(encoded)
        tensors = {
            name: _stored_tensor(file, name, entry, 8 + length, size)
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (FileNotFoundError, ModelError):
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{file}: damaged safetensors header: {error}") from error
    in_order = sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop))
    for (first, one), (second, other) in pairwise(in_order):
        # Two names for the same bytes would be changed twice, or change each other.
        if other.start < one.stop and other.start < other.stop:
            raise ModelError(f"{file}: tensors {first!r} and {second!r} overlap: damaged header")
    if not digests:
        return tensors
    spans = {name: (tensor.start, tensor.stop) for name, tensor in tensors.items()}
    checks = seal.checks_of(file, length.to_bytes(8, "little") + encoded, spans, digests)
    return {name: replace(tensor, check=checks[name]) for name, tensor in tensors.items()}


def _stored_tensor(file: Path, name: str, entry: Mapping[str, Any], data: int, size: int) -> StoredTensor:
    """Checks what a header says of one tensor; `data` is where the tensors begin, `size` where the file ends."""
    kind, shape, offsets = entry["dtype"], tuple(entry["shape"]), tuple(entry["data_offsets"])
    if not all(type(number) is int and number >= 0 for number in shape + offsets):
        raise ModelError(f"{file}: tensor {name!r} has an impossible shape or offset")
    if kind not in _DTYPES:
        raise ModelError(
            f"{file}: tensor {name!r} is stored as {kind}, which is not supported: take the model before it was "
            "quantised, or load and save it in another type"
        )
    start, stop = (data + offset for offset in offsets)
    if stop - start != (wanted := math.prod(shape) * _DTYPES[kind].itemsize):
        raise ModelError(
            f"{file}: damaged header: tensor {name!r} of {shape} in {kind} takes {wanted} bytes, and its offsets, "
            f"{offsets[0]} to {offsets[1]}, hold {stop - start}"
        )
    if stop > size:
        raise ModelError(f"{file}: truncated: tensor {name!r} ends at byte {stop}, and the file has {size}")
    return StoredTensor(file, start, stop, _DTYPES[kind], shape)


def create(file: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, StoredTensor]:
    """Creates a safetensors file of float32 tensors, all zero and to be written block by block.

    Args:
        file: Where to write.
        shapes: Name → shape, in the order that the tensors have in the file.

    Returns:
        The tensors by name.
    """
    header: dict[str, Any] = {}
    offset = 0
    for name, shape in shapes.items():
        stop = offset + 4 * math.prod(shape)
        # Of a delta, bfloat16 would keep two digits: a merge adds, subtracts and compares them.
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, stop]}
        offset = stop
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)  # readers that map the file want the data aligned
    with file.open("wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        stream.truncate(8 + len(encoded) + offset)
    return read_header(file)


def as_bytes(values: Tensor) -> Any:
    """A writable view of a contiguous tensor's bytes, of any dtype."""
    return values.reshape(-1).view(torch.uint8).numpy()

"""Hugging Face checkpoints as files: read single tensors, write base + task vector in the base's own layout."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from spunge.errors import ArtifactError, IncompatibleTaskVectors, ModelError
from spunge.files import new_directory
from spunge.weights import seal
from spunge.weights.safetensors_files import OpenFiles, StoredTensor, as_bytes, read_header
from spunge.weights.task_vector import TaskVector, add, check_shape

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_BLOCK = 1 << 20
"""Elements that an export changes at once: its memory does not grow with the model."""
_COPIED = 1 << 24
"""Bytes copied at once, where the kernel does not do it."""
_SAMPLE = 1 << 12
"""Bytes of a sample in a fingerprint: one page of a disk."""
_PLAIN = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Weights in other formats beside those that were read would be the base's own, under the name of the changed model.
_NOT_COPIED = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".lock")


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a checkpoint directory by name, read without loading the model."""

    directory: Path
    tensors: Mapping[str, StoredTensor]

    @classmethod
    def open(cls, directory: str | Path, shards: Collection[str] | None = None) -> Checkpoint:
        """Reads the index and the headers only.

        Args:
            directory: Where the files are.
            shards: The names of the only files to look into; None: all.

        Raises:
            ModelError: No safetensors weights, a shard name that is not a plain file name, or a damaged header.
            ArtifactError: Of a checkpoint of ours: a header is not the one that was written.
        """
        directory = Path(directory)
        if not directory.is_dir():
            raise ModelError(f"{directory}: no such model directory")
        listed = shard_names(directory)
        everything = {SINGLE} if listed is None else set(listed.values())
        opened = everything if shards is None else everything & set(shards)
        sealed = seal.read(directory)
        tensors: dict[str, StoredTensor] = {}
        for shard in sorted(opened):
            if not (directory / shard).exists():
                rule = "only safetensors weights are read, never pickles"
                raise ModelError(f"{directory}: no {shard}: {rule}{_if_pickled(directory)}")
            tensors.update(read_header(directory / shard, sealed.get(shard)))
        expected = {name for name, shard in (listed or {}).items() if shard in opened}
        if missing := sorted(expected - set(tensors)):
            raise ModelError(f"{directory / INDEX}: lists {missing[0]!r}, which is in none of the shards")
        return cls(directory, tensors)

    def tensor(self, name: str) -> StoredTensor:
        """Returns a tensor, still in its file.

        Raises:
            IncompatibleTaskVectors: The checkpoint has no such tensor.
        """
        if name not in self.tensors:
            raise IncompatibleTaskVectors(
                f"{self.directory}: no parameter {name!r}: the task vector is of another model"
            )
        return self.tensors[name]

    def check(self, name: str, shape: tuple[int, ...], owner: str = "the task vector") -> None:
        """Raises IncompatibleTaskVectors, naming the tensor, unless a delta of this shape can be added to it."""
        stored = self.tensor(name)
        check_shape(name, stored.shape, shape, owner)
        if stored.dtype not in _PLAIN:
            kind = str(stored.dtype).removeprefix("torch.")
            raise IncompatibleTaskVectors(
                f"{name}: {self.directory} stores it as {kind}, to which no delta can be added: "
                "take the model before it was quantised"
            )

    def read(self, name: str) -> Tensor:
        """Returns one tensor, in the checkpoint's dtype."""
        return self.tensor(name).load()

    def digest(self, name: str) -> str:
        """The sha256 of one tensor's bytes."""
        return self.tensor(name).digest()

    @property
    def checks(self) -> tuple[seal.Check, ...]:
        """Of all its tensors, if it is a checkpoint of ours."""
        return tuple(stored.check for stored in self.tensors.values() if stored.check is not None)

    def verify(self) -> None:
        """Makes sure that a checkpoint of ours, read or not, is what was written; of others' nothing is known.

        Raises:
            ArtifactError: A file is damaged.
        """
        seal.verify(self.directory, weights=False)
        for check in self.checks:
            check.finish()

    def fingerprint(self) -> str:
        """What tells this model from another: the sha256 of all names, shapes and types, and of samples of all weights.

        Of every tensor the first, the middle and the last 4 KiB are read: another model differs there, at a thousandth
        of the cost of reading everything. It does not depend on the shards.
        """
        total = hashlib.sha256()
        with OpenFiles() as files:
            for name, stored in sorted(self.tensors.items()):
                total.update(f"{name} {stored.dtype} {list(stored.shape)}\n".encode())
                size = math.prod(stored.shape)
                length = min(size, _SAMPLE // stored.dtype.itemsize)
                for start in sorted({0, (size - length) // 2, size - length}):
                    sample = torch.empty(length, dtype=stored.dtype)
                    stored.read_into(sample, start, files)
                    total.update(as_bytes(sample))
        return total.hexdigest()

    def changed(self, task_vector: TaskVector, name: str) -> Tensor:
        """Returns one parameter with the task vector added, exactly as `export` writes it."""
        return task_vector_at(self, task_vector, name, 0, None).reshape(self.tensor(name).shape)


def _if_pickled(directory: Path) -> str:
    """What to do about weights of the kind that runs code when it is read."""
    pickled = next((file.name for file in sorted(directory.iterdir()) if file.suffix in (".bin", ".pt", ".pth")), None)
    if pickled is None:
        return ""
    return f", such as {pickled}: where you trust it, load it with transformers and save_pretrained it elsewhere"


def shard_names(directory: Path) -> dict[str, str] | None:
    """Returns the file of every tensor as the checkpoint's index has it, None if it is one file.

    Where both are, the single file is the model, as it is for transformers.

    Raises:
        ModelError: The index is damaged, or a shard name is not a plain file name.
    """
    index = directory / INDEX
    if not index.exists():
        return None
    try:
        listed = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{index}: damaged index: {error}") from error
    for shard in listed.values():
        # transformers would follow ../ out of the directory; a shard is a plain file name or it is refused.
        if not isinstance(shard, str) or not shard or shard in (".", "..") or shard != Path(shard).name:
            raise ModelError(f"{index}: shard name {shard!r} is not a plain file name")
    return None if (directory / SINGLE).exists() else listed


def task_vector_at(base: Checkpoint, task_vector: TaskVector, name: str, start: int, stop: int | None) -> Tensor:
    """Returns elements `start:stop` of a parameter with the task vector added, flat, in the base's dtype."""
    stored = base.tensor(name)
    check_shape(name, stored.shape, task_vector.shape(name))
    weight = stored.read(start, stop)
    return add(weight, task_vector.read(name, start, start + len(weight)), task_vector.scale)


def export(base: str | Path, task_vector: TaskVector, out: str | Path, *, card: str | None = None) -> Path:
    """Writes base + task vector as a checkpoint in the base's shard layout; unchanged bytes are copied as they are.

    Args:
        base: The base model's directory.
        task_vector: What to add.
        out: The new directory; it must not exist, and exists afterwards only if all went well.
        card: The text of its README.md.

    Raises:
        IncompatibleTaskVectors: The task vector does not fit the base.
        ArtifactError: `out` exists or cannot be written.
    """
    checkpoint = Checkpoint.open(base)
    for name in task_vector:
        checkpoint.check(name, task_vector.shape(name))
    with new_directory(out) as building:
        writer = TensorWriter(rewrite(checkpoint, building, set(task_vector)))
        for name in task_vector:
            size = task_vector.shape(name).numel()
            for start in range(0, size, _BLOCK):
                stop = min(start + _BLOCK, size)
                changed = task_vector_at(checkpoint, task_vector, name, start, stop)
                refuse_overflow(name, changed)
                writer.write(name, start, changed)
        if card is not None:
            (building / "README.md").write_text(card, encoding="utf-8")
        # All that was read is held against what was once written, before the rename that publishes what was made of it.
        writer.verify()
        task_vector.verify()
        checkpoint.verify()
        seal.write(building)
    return Path(out)


def refuse_overflow(name: str, changed: Tensor) -> None:
    """Raises IncompatibleTaskVectors, naming the tensor, if a changed weight is NaN or infinite."""
    low, high = torch.aminmax(changed)  # either is NaN if anything is; many times faster than `isfinite` of each
    if not (low.isfinite() and high.isfinite()):
        raise IncompatibleTaskVectors(
            f"{name}: base plus delta is NaN or infinite somewhere in {changed.dtype}; lower lambda or the weights"
        )


def rewrite(base: Checkpoint, directory: Path, changed: Collection[str]) -> dict[str, StoredTensor]:
    """Copies a checkpoint's files, all but the bytes of the `changed` tensors; returns those, to be written."""
    shards: dict[Path, list[StoredTensor]] = {}
    for name, stored in base.tensors.items():
        shards.setdefault(stored.file, []).extend([stored] if name in changed else [])
    for file in sorted(base.directory.iterdir()):
        if file in shards:
            _copy_but(file, directory / file.name, shards[file])
        elif file.is_file() and not file.name.endswith(_NOT_COPIED) and file.name != seal.SEAL:
            shutil.copyfile(file, directory / file.name)
    return {
        name: replace(stored, file=directory / stored.file.name)
        for name, stored in base.tensors.items()
        if name in changed
    }


class TensorWriter:
    """Tensors that are being written to files, front to back; afterwards they are read again and compared."""

    def __init__(self, tensors: Mapping[str, StoredTensor]) -> None:
        self._tensors = tensors
        self._checks = dict.fromkeys(tensors, 0)

    def write(self, name: str, start: int, values: Tensor) -> None:
        """Writes the next elements of one tensor."""
        values = values.cpu().contiguous()
        self._checks[name] = zlib.crc32(as_bytes(values), self._checks[name])
        self._tensors[name].write(start, values)

    def verify(self) -> None:
        """Brings the files to the disk, reads every written tensor back and compares.

        Raises:
            ArtifactError: The disk holds something else than was written.
        """
        for file in {stored.file for stored in self._tensors.values()}:
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                if hasattr(os, "posix_fadvise"):
                    # Let go of the cached pages, so that the reading below comes from the disk.
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
        for name, stored in self._tensors.items():
            if stored.checksum() != self._checks[name]:
                raise ArtifactError(f"{stored.file}: {name} reads back other than it was written: a failing disk?")


def _copy_but(source: Path, target: Path, holes: list[StoredTensor]) -> None:
    """Copies a file but for the bytes in `holes`, which are left zero."""
    with source.open("rb") as reading, target.open("wb") as writing:
        size = os.fstat(reading.fileno()).st_size
        writing.truncate(size)
        position = 0
        for start, stop in sorted((hole.start, hole.stop) for hole in holes):
            _copy_range(reading.fileno(), writing.fileno(), position, start)
            position = max(position, stop)
        _copy_range(reading.fileno(), writing.fileno(), position, size)


def _copy_range(source: int, target: int, position: int, stop: int) -> None:
    # In the kernel a copy-on-write file system shares the blocks, so that an export writes little more than it changes.
    in_kernel = hasattr(os, "copy_file_range")
    while position < stop:
        count = min(stop - position, _COPIED)
        if in_kernel:
            try:
                copied = os.copy_file_range(source, target, count, position, position)
            except OSError:  # across file systems, or on one that cannot
                in_kernel = False
                continue
        else:
            copied = os.pwrite(target, os.pread(source, count, position), position)
        if not copied:
            raise OSError("the source file became shorter")
        position += copied

"""What was written is what is read: the digests of an artifact's files, checked while its bytes are read anyway.

A checkpoint or an adapter of ours has them in `spunge.json`, a task vector in its manifest, all with a checksum of the
list itself. They tell damage, not malice: who can write the files can write the list as well.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from spunge.errors import ArtifactError
from spunge.files import checksum, content_of, digest_of, refuse_special

SEAL = "spunge.json"
SEALED = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")
"""What of a model is listed: weights, configuration and tokenizer. Its README is the user's to write on."""
_PIECE = 1 << 20


class Check:
    """The sha256 of a stretch of a file, taken of the bytes as others read them; `finish` reads what nobody has.

    Only what is read from front to back can be hashed on the way, so a sample from further on counts as not read.
    """

    def __init__(self, file: Path, start: int, stop: int, sha256: str, what: str = "") -> None:
        self._file, self._position, self._stop, self._sha256 = file, start, stop, sha256
        self._what = f"{what} in it" if what else "it"
        self._hash = hashlib.sha256()

    def take(self, offset: int, content: memoryview) -> None:
        """Takes note of bytes that were read, and where they stand in the file."""
        if offset <= self._position < min(offset + len(content), self._stop):
            self._hash.update(content[self._position - offset : self._stop - offset])
            self._position = min(offset + len(content), self._stop)

    def finish(self) -> None:
        """Reads the rest.

        Raises:
            ArtifactError: The bytes are not those that were written.
        """
        if self._position < self._stop:
            with self._file.open("rb") as stream:
                stream.seek(self._position)
                for piece in _pieces(stream, self._stop - self._position):
                    self._hash.update(piece)
            self._position = self._stop
        if self._hash.hexdigest() != self._sha256:
            raise _damaged(self._file, self._what)


def write(directory: Path) -> None:
    """Seals a checkpoint or an adapter that lies there, ready to be published."""
    files = {
        file.name: digests_of_tensors(file, whole=True) if file.suffix == ".safetensors" else digest_of(file)
        for file in sorted(directory.iterdir())
        if is_sealed(file)
    }
    sealed: dict[str, Any] = {"format": 1, "files": files}
    sealed["checksum"] = checksum(sealed)
    (directory / SEAL).write_text(json.dumps(sealed, indent=1), encoding="utf-8")


def is_sealed(file: Path) -> bool:
    """Whether a file of a model is one that a seal lists."""
    return file.name != SEAL and any(file.match(pattern) for pattern in SEALED) and file.is_file()


def read(directory: Path) -> Mapping[str, Mapping[str, Any]]:
    """Returns the files that a seal lists, with their digests; nothing where there is none, as in others' models.

    Raises:
        ArtifactError: The seal is damaged.
    """
    file = directory / SEAL
    if not file.exists():
        return {}
    refuse_special(file)
    try:
        sealed = json.loads(file.read_text(encoding="utf-8"))
        plain = all(name == Path(name).name and isinstance(digests, dict) for name, digests in sealed["files"].items())
        if sealed["checksum"] != checksum(sealed) or not plain:
            raise _damaged(file)
        return sealed["files"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise error if isinstance(error, ArtifactError) else _damaged(file) from error


def verify(directory: Path, *, weights: bool = True) -> None:
    """Compares a directory with its seal, if it has one; a file is hashed once while it stays as it is.

    Args:
        directory: A checkpoint or an adapter.
        weights: Whether those too; False for who checks them while reading.

    Raises:
        ArtifactError: A file is missing, or not what was written.
    """
    for name, digests in read(directory).items():
        file = directory / name
        if file.suffix == ".safetensors" and not weights:
            continue
        if not file.is_file() or content_of(file) != digests.get("sha256"):
            raise _damaged(file)


def digests_of_tensors(file: Path, *, whole: bool = False) -> dict[str, Any]:
    """Returns, by one reading, the sha256 of a safetensors file's header, of every tensor in it, and perhaps of all."""
    total = hashlib.sha256()
    with file.open("rb") as stream:
        length = stream.read(8)
        header = length + stream.read(int.from_bytes(length, "little"))
        total.update(header)
        entries = {name: entry for name, entry in json.loads(header[8:]).items() if name != "__metadata__"}
        tensors: dict[str, str] = {}
        for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
            start, stop = (len(header) + offset for offset in entry["data_offsets"])
            total.update(stream.read(start - stream.tell()))
            digest = hashlib.sha256()
            for piece in _pieces(stream, stop - start):
                digest.update(piece)
                if whole:
                    total.update(piece)
            tensors[name] = digest.hexdigest()
        total.update(stream.read())
    digests = {"bytes": file.stat().st_size, "header": hashlib.sha256(header).hexdigest(), "tensors": tensors}
    return {**digests, "sha256": total.hexdigest()} if whole else digests


def checks_of(file: Path, header: bytes, spans: Mapping[str, tuple[int, int]], digests: Mapping[str, Any]) -> Any:
    """Returns a check for every tensor of a file: one each, or one for all where only the whole file's sha256 is known.

    Args:
        file: A safetensors file.
        header: Its first bytes, up to the tensors.
        spans: Tensor → where it starts and stops.
        digests: What `digests_of_tensors` or `digest_of` said of it when it was written.

    Raises:
        ArtifactError: The header, or the length of the file, is not what was written.
    """
    size = file.stat().st_size
    if digests.get("bytes") != size:
        raise _damaged(file)
    if "tensors" not in digests:
        check = Check(file, 0, size, str(digests.get("sha256")))
        check.take(0, memoryview(header))
        return dict.fromkeys(spans, check)
    if not isinstance(digests["tensors"], dict) or digests.get("header") != hashlib.sha256(header).hexdigest():
        raise _damaged(file, "its header")
    return {name: Check(file, *span, str(digests["tensors"].get(name)), name) for name, span in spans.items()}


def _pieces(stream: BinaryIO, size: int) -> Iterator[memoryview]:
    held = memoryview(bytearray(min(size, _PIECE)))
    while size:
        count = stream.readinto(held[: min(size, _PIECE)])  # pyright: ignore[reportAttributeAccessIssue]
        if not count:
            return
        size -= count
        yield held[:count]


def _damaged(file: Path, what: str = "it") -> ArtifactError:
    ours = f"; if you changed it yourself, remove {SEAL} beside it" if (file.parent / SEAL).exists() else ""
    return ArtifactError(
        f"{file}: damaged: {what} is not what was written (its sha256 differs): take another copy, or make it again"
        f"{ours}"
    )

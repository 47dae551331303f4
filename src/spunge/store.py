"""Content-addressed artifacts: a key from everything that matters, a manifest written last, publication by rename."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import glob
import hashlib
import json
import os
import shutil
import socket
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spunge.errors import ArtifactError, redacted

MANIFEST = "manifest.json"
FORMAT = 1
_DAMAGED = ".damaged."
_LONG_AGO = 24 * 3600
"""After so many seconds an unfinished attempt of another machine counts as dead."""


@dataclass(frozen=True)
class Artifact:
    """One finished stage: a directory of files and the manifest that says how they came about."""

    path: Path
    manifest: Mapping[str, Any]
    reused: bool = True

    @property
    def key(self) -> str:
        """The artifact's name in the store."""
        return self.manifest["key"]


@dataclass(frozen=True)
class Store:
    """`root/<stage>/<key>/`: payload and manifest.json, shared by all experiments under one runs root."""

    root: Path

    @contextlib.contextmanager
    def held(self, *, alone: bool = False) -> Iterator[None]:
        """Holds the store: any number of runs at once, or, alone, whoever removes what no run refers to.

        Raises:
            ArtifactError: Others hold it; or it cannot be written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = (self.root / ".lock").open("a")
        except OSError as error:
            raise ArtifactError(f"{self.root}: cannot be written: {error.strerror or error}") from error
        with lock:
            try:
                fcntl.flock(lock, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            except BlockingIOError as error:
                other = "a run" if alone else "`spunge store gc`"
                raise ArtifactError(f"{self.root}: {other} is at work there; wait for it") from error
            yield

    @contextlib.contextmanager
    def marked(self) -> Iterator[Path]:
        """A file that all who share the store's directory can see; it goes afterwards, or with the next mark.

        Raises:
            ArtifactError: The store cannot be written.
        """
        mark = self.root / f".mark.{_unique()}"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            _sweep(self.root / "mark")
            mark.touch()
        except OSError as error:
            raise ArtifactError(f"{self.root}: cannot be written: {error.strerror or error}") from error
        try:
            yield mark
        finally:
            mark.unlink(missing_ok=True)

    def find(self, stage: str, inputs: Mapping[str, Any]) -> Artifact | None:
        """Returns the artifact made from these inputs, or None; a damaged one counts as none. Changes nothing.

        Raises:
            ArtifactError: The artifact is of a newer format than this version reads.
        """
        path = self.root / stage / key(stage, inputs)
        manifest = _read(path / MANIFEST)
        if manifest is None or _damage(manifest, path, path.name, _content):
            return None
        return Artifact(path, manifest)

    def reuse(self, stage: str, inputs: Mapping[str, Any]) -> Artifact | None:
        """Finds an artifact, and removes what an attempt left that was killed when it had just published it."""
        artifact = self.find(stage, inputs)
        if artifact is not None:
            self.tidy(artifact.path.name, done=True)
        return artifact

    def build(self, stage: str, inputs: Mapping[str, Any], make: Callable[[Path], Mapping[str, Any]]) -> Artifact:
        """Returns the artifact made from these inputs, making it if need be.

        Args:
            stage: The stage's name, and the directory it lies in.
            inputs: Everything that the result depends on, as JSON values: hashed into the key, kept in the manifest.
            make: Fills a new directory and returns what to note in the manifest. A `manifest.json` that it leaves
                there is merged in too.

        Raises:
            ArtifactError: The store cannot be written.
        """
        found = self.find(stage, inputs)
        if found is not None:
            return found
        name = key(stage, inputs)
        final = self.root / stage / name
        building = final.with_name(f".{name}.{_unique()}")
        started = time.perf_counter()
        try:
            _set_aside(final)
            _sweep(final)
            building.mkdir(parents=True)
            noted = dict(make(building))
            own = building / MANIFEST
            manifest = {
                **(_read(own) or {}),
                **noted,
                "format": FORMAT,
                "stage": stage,
                "key": name,
                "inputs": dict(inputs),
                "seconds": round(time.perf_counter() - started, 3),
                "files": {str(file.relative_to(building)): _digest(file) for file in _files(building) if file != own},
            }
            manifest = json.loads(redacted(json.dumps(manifest, ensure_ascii=False)))
            manifest["checksum"] = _checksum(manifest)
            own.write_text(json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False), encoding="utf-8")
            _sync(building)
            building.rename(final)
        except Exception as error:
            winner = self.find(stage, inputs)
            if winner is not None:  # another run published first: its result equals ours
                return winner
            if (reason := _unwritable(error, self.root)) is None:
                raise
            raise ArtifactError(f"{self.root}: the store cannot be written: {reason}") from error
        finally:
            shutil.rmtree(building, ignore_errors=True)
        return Artifact(final, manifest, reused=False)

    def scratch(self, name: str) -> Path:
        """Returns a new directory for what outlives a killed attempt at an artifact: checkpoints, answers so far.

        Each attempt has its own, so that two at once do not write into each other's files. A new one takes over what a
        dead one on this machine left, and copies what one elsewhere, dead or cut off, has so far.
        """
        attempts = self.root / ".scratch" / name
        own = attempts / _unique()
        for left in _newest_first(attempts):
            if _dead(left.name):
                with contextlib.suppress(FileNotFoundError):  # another attempt was quicker
                    left.rename(own)
                    return own
        fresh = own.with_name(f".{own.name}")  # whole or not at all, lest a kill leave half a checkpoint to the next
        while True:
            with contextlib.suppress(FileNotFoundError):  # another attempt tidied up meanwhile
                fresh.mkdir(parents=True, exist_ok=True)
                for left in _newest_first(attempts)[:1]:
                    for file in _files(left):
                        with contextlib.suppress(FileNotFoundError):  # replaced or removed meanwhile
                            (fresh / file.relative_to(left)).parent.mkdir(parents=True, exist_ok=True)
                            shutil.copyfile(file, fresh / file.relative_to(left))
                fresh.rename(own)
                return own

    def tidy(self, name: str, *, done: bool) -> None:
        """Removes the scratch directories of an artifact that is published; of another, those that are empty."""
        attempts = self.root / ".scratch" / name
        if done:  # an attempt that is still at work will not need its own: it takes the artifact that is there
            shutil.rmtree(attempts, ignore_errors=True)
        for path in (*_listed(attempts), attempts, attempts.parent):
            with contextlib.suppress(OSError):  # not empty: something to continue from, or another's place
                path.rmdir()

    def contents(self) -> Iterator[Artifact]:
        """Yields every artifact by stage and key; one whose manifest cannot be read has an empty one."""
        for path in _listed(self.root):
            yield from (Artifact(each, _read(each / MANIFEST) or {}) for each in _listed(path))

    def damaged(self) -> Iterator[tuple[Path, str]]:
        """Reads every artifact whole; yields those that are not what was published, and what of them is damaged."""
        for artifact in self.contents():
            path = artifact.path
            damage = _damage(artifact.manifest, path, path.name, lambda file: _digest(file)["sha256"])
            if damage is not None:
                yield path, damage

    def superfluous(self, needed: Collection[str]) -> Iterator[Path]:
        """Yields what can go: artifacts and checkpoints of other keys, and what dead attempts and damage left."""
        for artifact in self.contents():
            if artifact.path.name not in needed:
                yield artifact.path
        for stage in _listed(self.root):
            for left in sorted(stage.glob(".*")):
                if left.name.startswith(_DAMAGED) or _dead(left.name) or time.time() - left.stat().st_mtime > _LONG_AGO:
                    yield left
        yield from (left for left in _listed(self.root / ".scratch") if left.name not in needed)

    def manifests(self, stage: str) -> Iterator[Mapping[str, Any]]:
        """Yields the manifest of every finished artifact of a stage, the newest first."""
        for path in _newest_first(self.root / stage):
            manifest = _read(path / MANIFEST)
            if manifest is not None and isinstance(manifest.get("inputs"), dict):
                yield manifest

    def why(self, stage: str, inputs: Mapping[str, Any]) -> list[str]:
        """Says which inputs differ from the most similar artifact of the stage, field by field."""
        path = self.root / stage / key(stage, inputs)
        if path.exists() and (damage := _damage_of(path)) is not None:
            return [f"{damage} is damaged"]
        wanted = _flat(inputs)
        best: list[str] | None = None
        for manifest in self.manifests(stage):
            have = _flat(manifest["inputs"])
            names = dict.fromkeys([*wanted, *have])
            differences = [
                f"{name}: {_show(have.get(name))} → {_show(wanted.get(name))}"
                for name in names
                if have.get(name) != wanted.get(name)
            ]
            if best is None or len(differences) < len(best):
                best = differences
        return ["nothing of this stage in the store yet"] if best is None else best


def key(stage: str, inputs: Mapping[str, Any]) -> str:
    """Returns the sha256 of a stage and its inputs as canonical JSON, shortened to 32 hexadecimal digits."""
    return hashlib.sha256(canonical({"stage": stage, "inputs": inputs}).encode()).hexdigest()[:32]


def canonical(value: Any) -> str:
    """Returns the one JSON text of a value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def derived_seed(seed: int, stage: str, name: str) -> int:
    """Returns the seed of one task: a hash of the run's seed, the stage and the subset's name."""
    return int.from_bytes(hashlib.sha256(canonical([seed, stage, name]).encode()).digest()[:6], "big")


def replace_text(path: Path, text: str) -> None:
    """Writes a file so that a reader sees the old text or the new one, never half.

    Raises:
        ArtifactError: The file cannot be written.
    """
    with replaced(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A passing name to write a file under, which becomes `path` if all goes well.

    Raises:
        ArtifactError: The file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{_unique()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def size(path: Path) -> int:
    """Returns the bytes of a file, or of all files of a directory."""
    return sum(file.stat().st_size for file in (_files(path) if path.is_dir() else [path]))


def _unique() -> str:
    return f"{here()}.{os.getpid()}.{time.monotonic_ns()}"


@functools.cache
def here() -> str:
    """The host, and the process namespace on it: containers may share a host's name, and not see each other's."""
    processes = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()}.{processes.stat().st_ino if processes.exists() else 0}"


def _dead(name: str) -> bool:
    """Whether the process that made a name by `_unique` ran on this machine and is gone."""
    before, _, rest = name.rpartition(f"{here()}.")
    pid = rest.partition(".")[0]
    known = (not before or before.endswith(".")) and pid.isdecimal() and Path("/proc/self").exists()
    return known and not Path(f"/proc/{pid}").exists()


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def _listed(directory: Path) -> list[Path]:
    """The directories in a directory, without hidden ones; none if there is no such directory (any more)."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return sorted(path for path in directory.iterdir() if path.is_dir() and not path.name.startswith("."))
    return []


def _digest(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def _checksum(manifest: Mapping[str, Any]) -> str:
    """The sha256 of a manifest as it is read back, its own checksum apart."""
    plain = {name: part for name, part in manifest.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _sweep(final: Path) -> None:
    """Removes what attempts at the same artifact or file left when they were killed on this machine."""
    for left in final.parent.glob(f".{glob.escape(final.name)}.*"):
        if _dead(left.name) and left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        elif _dead(left.name):
            left.unlink(missing_ok=True)


def _newest_first(directory: Path) -> list[Path]:
    def changed(path: Path) -> float:
        with contextlib.suppress(OSError):
            return path.stat().st_mtime
        return 0.0

    return sorted(_listed(directory), key=changed, reverse=True)


def _unwritable(error: Exception, root: Path) -> str | None:
    """Says why files below `root` cannot be written, if that is what lies behind an error."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno is not None:
            full = cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            if full or (cause.filename is not None and Path(os.fsdecode(cause.filename)).is_relative_to(root)):
                return os.strerror(cause.errno)
        cause = cause.__cause__ or cause.__context__
    return None


_verified: dict[tuple[Path, int, int], str] = {}


def _content(file: Path) -> str:
    """The sha256 of a file, computed once while its size and time stay the same."""
    status = file.stat()
    known = (file, status.st_size, status.st_mtime_ns)
    if known not in _verified:
        _verified[known] = _digest(file)["sha256"]
    return _verified[known]


def _damage_of(path: Path, name: str | None = None) -> str | None:
    """Says which file of an artifact is not what was published; None if all are."""
    return _damage(_read(path / MANIFEST) or {}, path, name or path.name, _content)


def _damage(manifest: Mapping[str, Any], path: Path, name: str, content: Callable[[Path], str]) -> str | None:
    if manifest.get("checksum") != _checksum(manifest) or manifest.get("key") != name:
        return MANIFEST
    if manifest["format"] > FORMAT:
        raise ArtifactError(
            f"{path}: written by a newer Spunge (format {manifest['format']}, this one reads {FORMAT}): "
            "upgrade, or give another --out"
        )
    for file, said in manifest["files"].items():
        try:
            if content(path / file) != said["sha256"]:
                return file
        except OSError:
            return file
    return None


def _set_aside(final: Path) -> None:
    """Moves a damaged artifact out of the way, with a warning; it is kept, to be looked into, until gc."""
    if not final.exists() or (damage := _damage_of(final)) is None:
        return
    aside = final.with_name(f"{_DAMAGED}{final.name}.{_unique()}")
    with contextlib.suppress(FileNotFoundError):  # another run was quicker
        final.rename(aside)
        if _damage_of(aside, final.name) is None:  # another run had mended it meanwhile
            aside.rename(final)
            return
        warnings.warn(
            f"{final}: {damage} is damaged, so it is made again; the old one is kept as {aside.name}",
            RuntimeWarning,
            stacklevel=3,
        )


def _sync(directory: Path) -> None:
    """Brings files to the disk, each as open to others as its directory: some libraries write for the owner alone."""
    for file in _files(directory):
        file.chmod(directory.stat().st_mode & 0o666)
        with file.open("rb") as stream:
            os.fsync(stream.fileno())


def _read(file: Path) -> dict[str, Any] | None:
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) else None


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping) and value:
        return {
            name: leaf
            for part in value
            for name, leaf in _flat(value[part], f"{prefix}.{part}" if prefix else part).items()
        }
    return {prefix: value}


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:12]}…{text[-8:]}"

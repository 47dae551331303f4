"""Content-addressed artifacts: a key from everything that matters, a manifest written last, publication by rename."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spunge.errors import ArtifactError

MANIFEST = "manifest.json"
FORMAT = 1


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

    def find(self, stage: str, inputs: Mapping[str, Any]) -> Artifact | None:
        """Returns the artifact made from these inputs, or None; a damaged one is set aside and counts as none."""
        path = self.root / stage / key(stage, inputs)
        if not (path / MANIFEST).exists():
            return None
        manifest = _read(path / MANIFEST)
        if manifest is None or not _intact(path, manifest):
            set_aside = path.with_name(f".damaged.{path.name}.{_unique()}")
            with contextlib.suppress(FileNotFoundError):
                path.rename(set_aside)
            return None
        return Artifact(path, manifest)

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
            own.write_text(json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False))
            _sync(building)
            building.rename(final)
        except OSError as error:
            winner = None if isinstance(error, ArtifactError) else self.find(stage, inputs)
            if winner is not None:  # another run published first: its result equals ours
                return winner
            if isinstance(error, ArtifactError):
                raise
            raise ArtifactError(f"{self.root}: the store cannot be written: {error.strerror or error}") from error
        finally:
            shutil.rmtree(building, ignore_errors=True)
        return Artifact(final, manifest, reused=False)

    def manifests(self, stage: str) -> Iterator[Mapping[str, Any]]:
        """Yields the manifest of every finished artifact of a stage, the newest first."""
        if not (self.root / stage).is_dir():
            return
        finished = [path for path in (self.root / stage).iterdir() if not path.name.startswith(".")]
        for path in sorted(finished, key=lambda path: path.stat().st_mtime, reverse=True):
            manifest = _read(path / MANIFEST)
            if manifest is not None:
                yield manifest

    def why(self, stage: str, inputs: Mapping[str, Any]) -> list[str]:
        """Says which inputs differ from the most similar artifact of the stage, field by field."""
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
    temporary = path.with_name(f".{path.name}.{_unique()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _unique() -> str:
    return f"{socket.gethostname()}.{os.getpid()}.{time.monotonic_ns()}"


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def _digest(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def _sweep(final: Path) -> None:
    """Removes what attempts at the same artifact left when they were killed on this machine."""
    for left in final.parent.glob(f".{final.name}.{socket.gethostname()}.*"):
        pid = left.name.rsplit(".", 2)[1]
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
            shutil.rmtree(left, ignore_errors=True)


_verified: dict[tuple[Path, int, int], str] = {}


def _content(file: Path) -> str:
    """The sha256 of a file, computed once while its size and time stay the same."""
    status = file.stat()
    known = (file, status.st_size, status.st_mtime_ns)
    if known not in _verified:
        _verified[known] = _digest(file)["sha256"]
    return _verified[known]


def _intact(path: Path, manifest: Mapping[str, Any]) -> bool:
    try:
        return all(_content(path / name) == said["sha256"] for name, said in manifest["files"].items())
    except (OSError, KeyError, TypeError, AttributeError):
        return False


def _sync(directory: Path) -> None:
    for file in _files(directory):
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

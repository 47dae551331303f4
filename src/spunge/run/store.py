"""Content-addressed artifacts by their key (see `keys`): a lock, a manifest written last, publication by rename."""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spunge.errors import ArtifactError, redacted
from spunge.files import (
    checksum,
    content_of,
    digest_of,
    directories_in,
    files_below,
    is_dead,
    locked,
    newest_first,
    remove,
    remove_dead,
    sync,
    sync_all,
    unique_name,
    why_unwritable,
    writing,
)
from spunge.run.keys import key

MANIFEST = "manifest.json"
FORMAT = 1
_DAMAGED = ".damaged."
_BASE = "base.digest"
"""The input that says of which base model an artifact is."""
_KEY = re.compile(r'"[0-9a-f]{32}"')
"""An input that another stage made: an artifact's key, in JSON."""
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

    def held(self, *, alone: bool = False) -> contextlib.AbstractContextManager[None]:
        """Holds the store: any number of runs at once, or, alone, whoever removes what no run refers to.

        Raises:
            ArtifactError: Others hold it; or it cannot be written or locked.
        """
        other = "a run" if alone else "`spunge store gc`"
        return locked(self.root, f"{other} is at work there; wait for it", shared=not alone)

    @contextlib.contextmanager
    def marked(self) -> Iterator[Path]:
        """A file that all who share the store's directory can see; it goes afterwards, or with the next mark.

        Raises:
            ArtifactError: The store cannot be written.
        """
        mark = self.root / f".mark.{unique_name()}"
        with writing(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            remove_dead(self.root / "mark")
            mark.touch()
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
        # A digest is remembered while size, times and inode stay: asked again, gigabytes of payload cost a stat each.
        if manifest is None or _damage(manifest, path, path.name, content_of):
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
        artifact = self.find(stage, inputs)
        if artifact is not None:
            return artifact
        final = self.root / stage / key(stage, inputs)
        # Beside its place and not in a temporary directory: a rename is one step within a file system only.
        building = final.with_name(f".{final.name}.{unique_name()}")
        started = time.perf_counter()
        try:
            _set_aside(final)
            remove_dead(final)
            building.mkdir(parents=True)
            noted = {**make(building), "seconds": round(time.perf_counter() - started, 3)}
            manifest = _write_manifest(building, stage, inputs, noted)
            # Payload first and name last: after a power cut, whatever has its final name is whole.
            sync_all(building)
            building.rename(final)  # refused where another run was quicker: a directory that is not empty stays
            sync(final.parent)
        except Exception as error:
            winner = self.find(stage, inputs)
            if winner is not None:  # another run published first: its result equals ours
                return winner
            if (reason := why_unwritable(error, self.root)) is None:
                raise
            raise ArtifactError(f"{self.root}: the store cannot be written: {reason}") from error
        finally:
            remove(building)
        return Artifact(final, manifest, reused=False)

    def scratch(self, name: str) -> Path:
        """Returns a new directory for what outlives a killed attempt at an artifact: checkpoints, answers so far.

        Each attempt has its own, so that two at once do not write into each other's files. A new one takes over what a
        dead one on this machine left, and copies what one elsewhere, dead or cut off, has so far.
        """
        # By the key, so that what is taken over is of the very same task: another recipe, another directory.
        attempts = self.root / ".scratch" / name
        scratch = attempts / unique_name()
        for left in newest_first(attempts):
            if is_dead(left.name):
                with contextlib.suppress(FileNotFoundError):  # another attempt was quicker
                    left.rename(scratch)
                    return scratch
        building = scratch.with_name(f".{scratch.name}")  # lest a kill leave half a checkpoint to the next attempt
        while True:
            with contextlib.suppress(FileNotFoundError):  # another attempt tidied up meanwhile
                building.mkdir(parents=True, exist_ok=True)
                for left in newest_first(attempts)[:1]:
                    _copy_what_is_there(left, building)
                building.rename(scratch)
                return scratch

    def tidy(self, name: str, *, done: bool) -> None:
        """Removes the scratch directories of an artifact that is published; of another, those that are empty."""
        attempts = self.root / ".scratch" / name
        if done:  # an attempt that is still at work will not need its own: it takes the artifact that is there
            shutil.rmtree(attempts, ignore_errors=True)
        for path in (*directories_in(attempts), attempts, attempts.parent):
            with contextlib.suppress(OSError):  # not empty: something to continue from, or another's place
                path.rmdir()

    def contents(self) -> Iterator[Artifact]:
        """Yields every artifact by stage and key; one whose manifest cannot be read has an empty one."""
        for stage in directories_in(self.root):
            yield from (Artifact(path, _read(path / MANIFEST) or {}) for path in directories_in(stage))

    def damaged(self) -> Iterator[tuple[Path, str]]:
        """Reads every artifact whole; yields those that are not what was published, and what of them is damaged."""
        for artifact in self.contents():
            path = artifact.path
            damage = _damage(artifact.manifest, path, path.name, lambda file: digest_of(file)["sha256"])
            if damage is not None:
                yield path, damage

    def superfluous(self, needed: Collection[str]) -> Iterator[Path]:
        """Yields what can go: artifacts and checkpoints of other keys, and what dead attempts and damage left."""
        for artifact in self.contents():
            if artifact.path.name not in needed:
                yield artifact.path
        for stage in directories_in(self.root):
            for left in sorted(stage.glob(".*")):
                # A clock that was set back makes a file one of the future: it is then waited for, never removed early.
                old = time.time() - left.lstat().st_mtime > _LONG_AGO
                if left.name.startswith(_DAMAGED) or is_dead(left.name) or old:
                    yield left
        yield from (left for left in directories_in(self.root / ".scratch") if left.name not in needed)

    def delete(self, path: Path) -> None:
        """Removes an artifact, or whatever else `superfluous` has found: a stray file as well.

        Raises:
            ArtifactError: It cannot be removed.
        """
        with writing(self.root):
            # A link goes, and never what it leads to, which may be somebody's data.
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def manifests(self, stage: str) -> Iterator[Mapping[str, Any]]:
        """Yields the manifest of every finished artifact of a stage, the newest first."""
        for path in newest_first(self.root / stage):
            manifest = _read(path / MANIFEST)
            if manifest is not None and isinstance(manifest.get("inputs"), dict):
                yield manifest

    def stored_inputs(self, stage: str) -> list[Mapping[str, Any]]:
        """Returns what every artifact of a stage was made from, field by field, the newest first; see `why`."""
        return [_flat(manifest["inputs"]) for manifest in self.manifests(stage)]

    def why(
        self, stage: str, inputs: Mapping[str, Any], stored: Sequence[Mapping[str, Any]] | None = None
    ) -> list[str]:
        """Says which inputs differ from the most similar artifact of the stage, field by field.

        Only artifacts of the same base model are compared with. Of inputs that other stages make it is said that they
        are new: what they differ in is said of those stages.

        Args:
            stage: The stage.
            inputs: What an artifact would be made from.
            stored: What `stored_inputs` returned, for who asks more than once.
        """
        path = self.root / stage / key(stage, inputs)
        if path.exists() and (damage := _damage_of(path)) is not None:
            return [f"{damage} is damaged"]
        wanted = _flat(inputs)
        stored = self.stored_inputs(stage) if stored is None else stored
        alike = [have for have in stored if have.get(_BASE) == wanted.get(_BASE)]
        best: Mapping[str, Any] | None = None
        fewest = math.inf
        for have in alike:
            differing = sum(have.get(name) != value for name, value in wanted.items())
            # What only the stored one has is counted for a likely winner alone: for most, this cheap half has decided.
            if differing < fewest:
                differing += sum(value is not None and name not in wanted for name, value in have.items())
                best, fewest = (have, differing) if differing < fewest else (best, fewest)
        if best is None:
            return [f"nothing of this stage{' for this base model' if stored else ''} in the store yet"]
        changed = [name for name in dict.fromkeys([*wanted, *best]) if best.get(name) != wanted.get(name)]
        made = [name for name in changed if _KEY.search(json.dumps([best.get(name), wanted.get(name)]))]
        # A task's seed follows from its name too: it is worth a word where nothing else differs.
        told = [name for name in changed if name not in made and (name != "seed" or len(changed) == 1)]
        return [
            *(f"{name}: {_show(best.get(name))} → {_show(wanted.get(name))}" for name in told),
            *dict.fromkeys(f"{name.partition('.')[0]}: made anew by an earlier stage" for name in made),
        ]


def _write_manifest(
    directory: Path, stage: str, inputs: Mapping[str, Any], noted: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Writes an artifact's manifest over what its maker may have left there, with the digests of all other files."""
    path = directory / MANIFEST
    manifest = {
        **(_read(path) or {}),
        **noted,
        "format": FORMAT,
        "stage": stage,
        "key": key(stage, inputs),
        "inputs": dict(inputs),
        "files": {str(file.relative_to(directory)): digest_of(file) for file in files_below(directory) if file != path},
    }
    # Through JSON before the checksum, which is of what a reader gets back: lists for tuples, and no access token.
    manifest = json.loads(redacted(json.dumps(manifest, ensure_ascii=False)))
    manifest["checksum"] = checksum(manifest)
    path.write_text(json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False), encoding="utf-8")
    return manifest


def _copy_what_is_there(source: Path, target: Path) -> None:
    """Copies the files of an attempt that may still be at work: some are replaced or removed meanwhile."""
    for file in files_below(source):
        with contextlib.suppress(FileNotFoundError):
            (target / file.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / file.relative_to(source))


def _damage_of(path: Path, name: str | None = None) -> str | None:
    """Says which file of an artifact is not what was published; None if all are."""
    return _damage(_read(path / MANIFEST) or {}, path, name or path.name, content_of)


def _damage(manifest: Mapping[str, Any], path: Path, name: str, content: Callable[[Path], str]) -> str | None:
    if manifest.get("checksum") != checksum(manifest) or manifest.get("key") != name:
        return MANIFEST
    if not isinstance(manifest.get("format"), int) or not isinstance(manifest.get("files"), dict):
        return MANIFEST
    if manifest["format"] > FORMAT:
        raise ArtifactError(
            f"{path}: written by a newer Spunge (format {manifest['format']}, this one reads {FORMAT}): "
            "upgrade, or give another --out"
        )
    for file, published in manifest["files"].items():
        try:
            if not (path / file).is_file() or content(path / file) != published["sha256"]:
                return file
        except OSError:
            return file
    return None


def _set_aside(final: Path) -> None:
    """Moves a damaged artifact out of the way, with a warning; it is kept, to be looked into, until gc."""
    if not final.exists() or (damage := _damage_of(final)) is None:
        return
    aside = final.with_name(f"{_DAMAGED}{final.name}.{unique_name()}")
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


def _read(file: Path) -> dict[str, Any] | None:
    if not file.is_file():  # or a FIFO, which would be waited for
        return None
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    # RecursionError is JSON's word for a hundred thousand brackets: damage like any other.
    except (OSError, ValueError, RecursionError):
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

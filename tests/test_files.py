"""Files that are whole or not at all, one lock, and what is said when neither can be had."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from spunge import files
from spunge.errors import ArtifactError
from spunge.files import (
    FileMemory,
    format_bytes,
    format_duration,
    is_locked,
    locked,
    new_directory,
    replace_text,
    replaced,
    why_unwritable,
)
from spunge.rows.sources import Source, load_corpus
from spunge.weights.checkpoint import Checkpoint
from spunge.weights.language_model import LanguageModel
from spunge.weights.task_vector import TaskVector


def test_a_file_is_on_the_disk_before_its_name_and_the_name_before_the_writer_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, bool]] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append((Path(f"/proc/self/fd/{descriptor}").readlink().name, (tmp_path / "text").exists()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    replace_text(tmp_path / "text", "new")
    (building, there), (parent, published) = synced
    assert (building.startswith(".text."), there) == (True, False)
    assert (parent, published) == (tmp_path.name, True)


def test_a_directory_replaces_none_and_a_failure_leaves_none(tmp_path: Path) -> None:
    with new_directory(tmp_path / "out") as building:
        (building / "file").write_text("x")
    assert (tmp_path / "out" / "file").read_text() == "x"
    with pytest.raises(ArtifactError, match="exists already"), new_directory(tmp_path / "out"):
        raise AssertionError
    with pytest.raises(ValueError, match="mine"), new_directory(tmp_path / "other"):
        raise ValueError("mine")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_lock_is_one_holders_or_shared(tmp_path: Path) -> None:
    assert not is_locked(tmp_path)
    with locked(tmp_path / "held", "busy"):
        assert is_locked(tmp_path / "held")
        with pytest.raises(ArtifactError, match="busy"), locked(tmp_path / "held", "busy", shared=True):
            raise AssertionError
    assert not is_locked(tmp_path / "held")
    with locked(tmp_path, "busy", shared=True), locked(tmp_path, "busy", shared=True):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.fcntl, "flock", flock)
    refused = re.escape(os.strerror(number)) + ".*file system has no locks"
    with pytest.raises(ArtifactError, match=refused), locked(tmp_path, "busy"):
        raise AssertionError


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        (lambda root: OSError(errno.ENOSPC, "full"), "No space left on device"),
        (lambda root: OSError(errno.EDQUOT, "over"), "Disk quota exceeded"),
        (lambda root: OSError(errno.EACCES, "denied", str(root / "inner")), "Permission denied"),
        (lambda root: OSError(errno.EACCES, "denied", "/elsewhere"), None),
        (lambda root: RuntimeError("I/O error: File too large (os error 27)"), "File too large"),
        (lambda root: RuntimeError("No such file or directory (os error 2)"), None),
    ],
)
def test_what_lies_behind_an_error_is_the_disk_or_not(
    tmp_path: Path, raised: Callable[[Path], Exception], reason: str | None
) -> None:
    assert why_unwritable(raised(tmp_path), tmp_path) == reason
    outer = RuntimeError("outer")
    outer.__cause__ = raised(tmp_path)
    assert why_unwritable(outer, tmp_path) == reason


def test_a_library_that_meets_a_full_disk_is_told_like_any_other(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="table: cannot be written: No space"), replaced(tmp_path / "table"):
        raise RuntimeError("parquet: No space left on device (os error 28)")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "?"), (0, "0.0 s"), (0.0123, "0.01 s"), (12.34, "12.3 s"), (59.96, "1 min 00 s"), (65, "1 min 05 s"),
        (3599.6, "1 h 00 min"), (7445, "2 h 04 min"), (86380, "1 d 00 h"), (360_000, "4 d 04 h"),
    ],
)  # fmt: skip
def test_durations(seconds: float | None, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (10_000, "10 KiB"), (5e6, "4.8 MiB"), (4.5e8, "429 MiB"), (2**30, "1.0 GiB")],
)
def test_sizes(size: float, text: str) -> None:
    assert format_bytes(size) == text


def test_a_fifo_where_a_file_should_be_is_refused_and_not_waited_for(tmp_path: Path, tiny_model: Path) -> None:
    model, vector = tmp_path / "model", tmp_path / "vector"
    shutil.copytree(tiny_model, model)
    vector.mkdir()
    for name in (model / "model.safetensors", vector / "manifest.json", tmp_path / "rows.jsonl"):
        name.unlink(missing_ok=True)
        os.mkfifo(name)
    for reading in (
        lambda: LanguageModel(id=str(model)).checkpoint(),
        lambda: LanguageModel(id=str(model)).digest(),
        lambda: Checkpoint.open(model),
        lambda: TaskVector.open(vector),
        lambda: load_corpus([Source(path=str(tmp_path / "rows.jsonl"))]),
    ):
        with pytest.raises(ArtifactError, match="a FIFO, a socket or a device"):
            reading()


def test_what_was_computed_of_a_file_is_forgotten_when_it_changes(tmp_path: Path) -> None:
    file, calls = tmp_path / "file", []
    file.write_text("old")
    memory: FileMemory[str] = FileMemory()

    def compute() -> str:
        calls.append(file.read_text())
        return calls[-1]

    assert [memory.recall("name", [file], compute) for _ in range(2)] == ["old", "old"]
    before = file.stat()
    file.write_text("new")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # of the same size and time
    assert memory.recall("name", [file], compute) == "new"
    assert calls == ["old", "new"]

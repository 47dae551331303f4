"""Files and directories that a reader sees whole or not at all, and what killed processes leave of them."""

from __future__ import annotations

import contextlib
import errno
import functools
import glob
import hashlib
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spunge.errors import ArtifactError


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
    temporary = path.with_name(f".{path.name}.{unique_name()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_dead(path)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def refuse_existing(out: str | Path) -> None:
    """Raises ArtifactError if `out` exists; `new_directory` asks too, but only after all that is read before it."""
    if Path(out).exists():
        raise ArtifactError(f"{out}: exists already; give another --out or remove it")


@contextmanager
def new_directory(out: str | Path) -> Iterator[Path]:
    """A directory that is filled under a passing name and becomes `out` if all goes well, else is gone.

    Raises:
        ArtifactError: `out` exists or cannot be written.
    """
    refuse_existing(out)
    out, building = Path(out), None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        building = out.parent / f".{out.name}.{uuid.uuid4().hex}"
        building.mkdir()  # unlike a temporary directory, as open to others as the user's umask says
        yield building
        for file in [*building.iterdir(), building]:
            if file.is_file():  # some libraries write for the owner alone
                file.chmod(building.stat().st_mode & 0o666)
            sync(file)
        building.rename(out)
        sync(out.parent)
    except ArtifactError:
        raise
    except OSError as error:
        raise ArtifactError(f"{out}: cannot be written: {error.strerror or error}") from error
    finally:
        if building is not None:
            shutil.rmtree(building, ignore_errors=True)


def sync(file: Path) -> None:
    """Brings a file, or a directory's own entries, to the disk."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def files_below(directory: Path) -> list[Path]:
    """Returns all files of a directory and of those in it, in order."""
    return sorted(path for path in directory.rglob("*") if path.is_file())


def directories_in(directory: Path) -> list[Path]:
    """The directories in a directory, without hidden ones; none if there is no such directory (any more)."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return sorted(path for path in directory.iterdir() if path.is_dir() and not path.name.startswith("."))
    return []


def newest_first(directory: Path) -> list[Path]:
    """Returns the directories in a directory, the last changed first."""

    def changed(path: Path) -> float:
        with contextlib.suppress(OSError):
            return path.stat().st_mtime
        return 0.0

    return sorted(directories_in(directory), key=changed, reverse=True)


def size_of(path: Path) -> int:
    """Returns the bytes of a file, or of all files of a directory."""
    return sum(file.stat().st_size for file in (files_below(path) if path.is_dir() else [path]))


def digest_of(file: Path) -> dict[str, Any]:
    """Returns a file's size in bytes and its sha256."""
    with file.open("rb") as stream:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def format_bytes(size: int) -> str:
    """Returns a number of bytes for people."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.{0 if size >= 2**23 else 1}f} MiB"


def unique_name() -> str:
    """Returns a name that no other process takes, and that says which process took it (see `is_dead`)."""
    return f"{host()}.{os.getpid()}.{time.monotonic_ns()}"


@functools.cache
def host() -> str:
    """The host, and the process namespace on it: containers may share a host's name, and not see each other's."""
    processes = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()}.{processes.stat().st_ino if processes.exists() else 0}"


def is_dead(name: str) -> bool:
    """Whether the process that made a name by `_unique` ran on this machine and is gone."""
    before, _, rest = name.rpartition(f"{host()}.")
    pid = rest.partition(".")[0]
    known = (not before or before.endswith(".")) and pid.isdecimal() and Path("/proc/self").exists()
    return known and not Path(f"/proc/{pid}").exists()


def remove_dead(final: Path) -> None:
    """Removes what attempts at the same artifact or file left when they were killed on this machine."""
    for left in final.parent.glob(f".{glob.escape(final.name)}.*"):
        if is_dead(left.name) and left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        elif is_dead(left.name):
            left.unlink(missing_ok=True)


def why_unwritable(error: Exception, root: Path) -> str | None:
    """Says why files below `root` cannot be written, if that is what lies behind an error."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno is not None:
            full = cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            if full or (cause.filename is not None and Path(os.fsdecode(cause.filename)).is_relative_to(root)):
                return os.strerror(cause.errno)
        cause = cause.__cause__ or cause.__context__
    return None

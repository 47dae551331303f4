"""Files and directories that a reader sees whole or not at all, the one lock, and what killed processes leave."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import glob
import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

from spunge.errors import ArtifactError, InUse

T = TypeVar("T")
LOCK = ".lock"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Reasons that are the disk's, whichever file met them."""


def locate(path: str) -> Path:
    """Returns the file or directory that a recipe's path names; `lab:` is the embedded world in the package."""
    if path.startswith("lab:"):
        return Path(__file__).parent / "lab" / "world" / path.removeprefix("lab:")
    return Path(path).expanduser()


def is_local(path: str) -> bool:
    """Says whether a path is of this machine, be it there or not; else it can be a hub id."""
    return path.startswith((".", "/", "~", "lab:")) or path.count("/") > 1 or locate(path).exists()


def replace_text(path: Path, text: str) -> None:
    """Writes a file so that a reader sees the old text or the new one, never half.

    Raises:
        ArtifactError: The file cannot be written.
    """
    with replaced(path) as building:
        building.write_text(text, encoding="utf-8")


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A passing name to write a file or a directory under, which becomes `path` if all goes well.

    Every file is on the disk before the rename, and the rename before this returns: after a power cut there is the old
    content or the new one, and never a name without its bytes.

    Raises:
        ArtifactError: It cannot be written.
    """
    building = path.with_name(f".{path.name}.{unique_name()}")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_dead(path)
            yield building
            sync_all(building)
            building.replace(path)
            sync(path.parent)
    finally:
        remove(building)


@contextmanager
def new_directory(out: str | Path) -> Iterator[Path]:
    """A directory that is filled under a passing name and becomes `out` if all goes well, else is gone.

    Raises:
        ArtifactError: `out` exists or cannot be written.
    """
    refuse_existing(out)
    with replaced(Path(out)) as building:
        building.mkdir()  # unlike a temporary directory, as open to others as the user's umask says
        yield building


def refuse_existing(out: str | Path) -> None:
    """Raises ArtifactError if `out` exists; `new_directory` asks too, but only after all that is read before it."""
    if Path(out).exists():
        raise ArtifactError(f"{out}: exists already; give another --out or remove it")


@contextmanager
def locked(directory: Path, busy: str, *, shared: bool = False, wait: bool = False) -> Iterator[None]:
    """Holds a directory by the lock in it, which the operating system lets go of whatever becomes of the process.

    Args:
        directory: It is made if need be.
        busy: What to say when others hold it: who they are, and what to do.
        shared: Whether others that ask for a share may hold it as well.
        wait: Whether to wait until others let go of it, rather than to refuse.

    Raises:
        InUse: Others hold it.
        ArtifactError: It cannot be written, or is on a file system without locks.
    """
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        refuse_special(directory / LOCK)
        lock = (directory / LOCK).open("a")
    with lock:
        try:
            # flock, not lockf: a process loses its POSIX locks as soon as it closes any descriptor of the file.
            fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise InUse(f"{directory}: {busy}") from error
        except OSError as error:
            raise ArtifactError(
                f"{directory}: cannot be locked ({error.strerror or error}): its file system has no locks "
                "(Lustre has them with -o flock, NFS with a running lockd); give an --out elsewhere"
            ) from error
        yield


def is_locked(directory: Path) -> bool:
    """Whether a living process holds a directory (see `locked`); False where that cannot be told."""
    refuse_special(directory / LOCK)
    try:
        with (directory / LOCK).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no lock, or nobody's to read
        return False
    return False


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Says in one line that `path` cannot be written, when that is why what is done meanwhile fails.

    Raises:
        ArtifactError: It cannot be.
    """
    try:
        yield
    except ArtifactError:
        raise
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be written: {error.strerror or error}") from error
    except Exception as error:
        if (reason := _native_reason(error)) is None:
            raise
        raise ArtifactError(f"{path}: cannot be written: {reason}") from error


def why_unwritable(error: Exception, root: Path) -> str | None:
    """Says why files below `root` cannot be written, if that is what lies behind an error; else None."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno is not None:
            below = cause.filename is not None and Path(os.fsdecode(cause.filename)).is_relative_to(root)
            if below or cause.errno in _FULL:
                return os.strerror(cause.errno)
        elif (reason := _native_reason(cause)) is not None:
            return reason
        cause = cause.__cause__ or cause.__context__
    return None


def _native_reason(error: BaseException) -> str | None:
    """What Rust's libraries (polars, safetensors) met: they raise errors of their own, with the number in the text."""
    number = re.search(r"\(os error (\d+)\)", str(error))
    return os.strerror(int(number[1])) if number is not None and int(number[1]) in _FULL else None


def refuse_special(*paths: Path) -> None:
    """Refuses what is there but neither a file nor a directory: a reader of a FIFO or a device waits without end.

    Raises:
        ArtifactError: One of the paths is such a thing.
    """
    for path in paths:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise ArtifactError(f"{path}: a FIFO, a socket or a device, and not a file: copy its content to one")


def sync(file: Path) -> None:
    """Brings a file, or a directory's own entries, to the disk."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a directory, and keep its entries in order by themselves.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def sync_all(path: Path) -> None:
    """Brings a file, or all of a directory, to the disk; its files are then as open to others as itself."""
    if path.is_dir():
        readable = path.stat().st_mode & 0o666
        for file in files_below(path):
            file.chmod(readable)  # safetensors writes for the owner alone
            sync(file)
    sync(path)


def remove(path: Path) -> None:
    """Removes a file or a directory with all that is in it, as far as that can be done."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


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
    return sum(file.lstat().st_size for file in (files_below(path) if path.is_dir() else [path]))


def state_of(path: Path) -> tuple[int, ...]:
    """Returns what changes whenever a file's content does: size, time, and the time that no program can set back."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


class FileMemory(Generic[T]):
    """What was computed of files, each of it for as long as the files stay as they are."""

    def __init__(self) -> None:
        self._values: dict[Hashable, tuple[tuple[Any, ...], T]] = {}

    def recall(self, name: Hashable, files: Iterable[Path], compute: Callable[[], T]) -> T:
        """Returns what `compute` returned for this name, called again if a file has come, gone or changed since."""
        # Before the reading: what changes meanwhile is noticed the next time.
        state = tuple((str(file), *state_of(file)) for file in sorted(files))
        if name not in self._values or self._values[name][0] != state:
            self._values[name] = state, compute()
        return self._values[name][1]

    def forget(self, name: Hashable) -> None:
        """Lets go of one value."""
        self._values.pop(name, None)


def digest_of(file: Path) -> dict[str, Any]:
    """Returns a file's size in bytes and its sha256."""
    with file.open("rb") as stream:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def content_of(file: Path) -> str:
    """Returns a file's sha256, computed once while the file stays as it is (see `state_of`)."""
    return _content_in(file.absolute(), state_of(file))


@functools.lru_cache(maxsize=2**14)
def _content_in(file: Path, state: tuple[int, ...]) -> str:
    return digest_of(file)["sha256"]


def checksum(manifest: Mapping[str, Any]) -> str:
    """Returns the sha256 of a manifest as it is read back, its own `checksum` apart."""
    plain = {name: part for name, part in manifest.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def format_bytes(size: float) -> str:
    """Returns a number of bytes for people: `512 B`, `12 KiB`, `3.4 MiB`, `1.2 GiB`."""
    for unit, length in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= length:
            return f"{size / length:.{0 if size >= 8 * length and unit != 'GiB' else 1}f} {unit}"
    return f"{size:.0f} B"


def format_duration(seconds: float | None) -> str:
    """Returns a duration for people: `0.05 s`, `12.3 s`, `4 min 05 s`, `2 h 04 min`, `3 d 01 h`; `?` for None."""
    if seconds is None:
        return "?"
    if seconds < 59.95:
        return f"{seconds:.1f} s" if seconds >= 1 or not seconds else f"{seconds:.1g} s"
    unit, part, length = (
        ("min", "s", 1) if seconds < 3599.5 else ("h", "min", 60) if seconds < 86370 else ("d", "h", 3600)
    )
    whole, rest = divmod(round(seconds / length), 24 if unit == "d" else 60)
    return f"{whole} {unit} {rest:02} {part}"


def unique_name() -> str:
    """Returns a name that no other process takes, and that says which process took it (see `is_dead`)."""
    return f"{host()}.{os.getpid()}.{time.monotonic_ns()}"


@functools.cache
def host() -> str:
    """The host, and the process namespace on it: containers may share a host's name, and not see each other's."""
    processes = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()}.{processes.stat().st_ino if processes.exists() else 0}"


def is_dead(name: str) -> bool:
    """Whether the process that made a name by `unique_name` ran on this machine and is gone."""
    before, _, rest = name.rpartition(f"{host()}.")
    pid = rest.partition(".")[0]
    known = (not before or before.endswith(".")) and pid.isdecimal() and Path("/proc/self").exists()
    return known and not Path(f"/proc/{pid}").exists()


def remove_dead(final: Path) -> None:
    """Removes what attempts at the same artifact or file left when they were killed on this machine."""
    for left in final.parent.glob(f".{glob.escape(final.name)}.*"):
        if is_dead(left.name):
            remove(left)

"""What a recipe that names no code may read, write, start and reach, seen by the interpreter's own audit."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from attempts import attempt
from conftest import tiny_world

import spunge

STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "pty.spawn")
REACHES = ("socket.connect", "socket.getaddrinfo", "socket.sendto", "urllib.Request")
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod")


@dataclass
class Audit:
    """Writes down what an attempt opens, changes, starts and reaches."""

    log: Path

    def __call__(self) -> None:
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

        def note(event: str, args: tuple[Any, ...]) -> None:
            if event == "open" and isinstance(args[0], str | bytes | os.PathLike):
                writes = isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
                kind, about = ("write" if writes else "read"), str(Path(os.fsdecode(args[0])).absolute())
            elif event in ("os.remove", "os.rmdir") and args[1] != -1:
                return  # relative to a directory that rmtree opened, and this heard of, before
            elif event in CHANGES and isinstance(args[0], str | bytes | os.PathLike):
                kind, about = "write", str(Path(os.fsdecode(args[0])).absolute())
            elif event in STARTS or event in REACHES:
                kind, about = ("start" if event in STARTS else "reach"), f"{event} {args[:2]}"
            else:
                return
            os.write(log, f"{kind} {about}\n".encode())

        sys.addaudithook(note)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the recipe and its data lie."""
    return tmp_path_factory.mktemp("permissions")


@pytest.fixture(scope="module")
def seen(folder: Path, tiny_model: Path) -> dict[str, set[str]]:
    """Kind of event → what a whole run met, report and all."""
    world = tiny_world(folder, tiny_model)
    recipe = {**world, "forget": {**world["forget"], "where": "level >= 0"}, "controls": ["joint"]}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    done = attempt(("run", "recipe.yaml", "--out", "runs", "--quiet"), folder, Audit(folder / "audit.log"))
    assert done.code == 0, done.errors
    events: dict[str, set[str]] = {"read": set(), "write": set(), "start": set(), "reach": set()}
    for line in (folder / "audit.log").read_text().splitlines():
        kind, _, about = line.partition(" ")
        events[kind].add(about)
    assert any("recipe.yaml" in path for path in events["read"])
    assert any("items.parquet" in path for path in events["write"])
    return events


def outside(paths: set[str], *roots: str | Path) -> list[str]:
    return sorted(path for path in paths if not any(Path(path).is_relative_to(root) for root in roots))


def test_it_reads_what_it_names_and_spunge_itself(seen: dict[str, set[str]], folder: Path, tiny_model: Path) -> None:
    installed = [sys.prefix, sys.base_prefix, Path(spunge.__file__).parents[2], *filter(None, sys.path)]
    git = Path(spunge.__file__).parents[2] / ".git"
    if git.is_file():  # the checkout is a further working tree; its commit stands in the first one's repository
        installed.append(Path(git.read_text().removeprefix("gitdir:").strip()).parents[1])
    machine = [
        "/proc",
        "/sys",
        "/dev/null",
        "/dev/urandom",
        "/usr/share",
        "/usr/lib",
        "/etc/localtime",
        "/etc/os-release",
    ]
    caches = [Path.home() / ".cache", Path.home() / ".config" / "matplotlib", "/tmp/matplotlib-"]
    assert not outside(seen["read"], folder, tiny_model, *installed, *machine, *caches)


def test_it_writes_below_out_alone_but_for_caches_of_libraries(seen: dict[str, set[str]], folder: Path) -> None:
    caches = [Path.home() / ".cache", Path.home() / ".config" / "matplotlib", "/dev/null"]
    written = {path for path in seen["write"] if "__pycache__" not in path}
    # `errors.…` is where the attempt's own stderr goes.
    assert not [path for path in outside(written, folder / "runs", *caches) if "/errors." not in path]


def test_it_starts_and_reaches_nothing(seen: dict[str, set[str]]) -> None:
    assert not [start for start in seen["start"] if "'uname', '-p'" not in start]  # Python's own `platform` asks that
    assert not seen["reach"]

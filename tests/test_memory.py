"""What is free is the least of what machine, container and ulimit leave: on directories as the kernel makes them."""

from __future__ import annotations

import resource
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from spunge import memory

GIB = 2**30


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "cgroup"
    root.mkdir()
    monkeypatch.setattr(memory, "_GROUPS", root)
    monkeypatch.setattr(memory, "_MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=64 * GIB))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return root


def make(directory: Path, **files: object) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name.replace("__", ".")).write_text(f"{text}\n")


@pytest.mark.parametrize(
    ("membership", "directory", "free", "limit"),
    [
        ("0::/a/b", "a/b", 3 * GIB, 4 * GIB),  # the process's own group
        ("0::/a/b", "a", 3 * GIB, 4 * GIB),  # one that it is in
        ("0::/docker/unseen", "", 3 * GIB, 4 * GIB),  # a container that does not see itself by its host's name
        ("9:memory:/a\n1:name=systemd:/\n0::/", "memory/a", 3 * GIB, 4 * GIB),
        ("4:cpu,memory:/unseen", "memory", 3 * GIB, 4 * GIB),
        ("0::/elsewhere", "a/b", 64 * GIB, None),
        ("not what a kernel writes", "", 64 * GIB, None),
    ],
)
def test_the_limits_of_a_container_count(
    groups: Path, membership: str, directory: str, free: int, limit: int | None
) -> None:
    (groups.parent / "membership").write_text(membership + "\n")
    used, cached = 2 * GIB, f"anon 5\ninactive_file {GIB}\ntotal_inactive_file {GIB}"
    if directory.startswith("memory"):
        names = {"memory__limit_in_bytes": 4 * GIB, "memory__usage_in_bytes": used, "memory__stat": cached}
    else:
        names = {"memory__max": 4 * GIB, "memory__current": used, "memory__stat": cached}
        make(groups / "a/b", memory__max="max", memory__current=0, memory__stat="")
    make(groups / directory, **names)
    assert memory.available() == free
    assert memory.limit() == limit


def test_without_control_groups_the_machine_counts(groups: Path) -> None:
    assert memory.available() == 64 * GIB  # as where there is no /proc
    assert memory.limit() is None


def test_a_limit_of_addresses_counts(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = psutil.Process().memory_info().vms
    monkeypatch.setattr(resource, "getrlimit", lambda _: (taken + GIB, resource.RLIM_INFINITY))
    assert memory.available() == pytest.approx(GIB, abs=GIB / 4)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (GIB // 4, resource.RLIM_INFINITY))
    assert memory.available() == 0

"""How much memory this process may still take: of what the machine has free, what its limits leave.

A container's limit is not in what the machine says of itself, and who goes beyond it is killed without a word.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

_MEMBERSHIP = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")


def available() -> int:
    """Returns the bytes that this process can take before the machine, its control groups or `ulimit -v` stop it."""
    free = [psutil.virtual_memory().available, *(limit - used for limit, used in _groups())]
    addresses, _ = resource.getrlimit(resource.RLIMIT_AS)
    if addresses != resource.RLIM_INFINITY:
        free.append(addresses - psutil.Process().memory_info().vms)
    return max(0, min(free))


def limit() -> int | None:
    """Returns the bytes that the process's control groups allow, together with all else in them; None without any."""
    return min((limit for limit, _ in _groups()), default=None)


def _groups() -> Iterator[tuple[int, int]]:
    """Yields what a group of this process may take and has taken, of it and of those that it is in."""
    with suppress(OSError, ValueError):
        for line in _MEMBERSHIP.read_text(encoding="utf-8").splitlines():
            _, controllers, name = line.split(":", 2)
            if not controllers:
                for root in (_GROUPS, _GROUPS / "unified"):
                    yield from _upwards(root, name, "memory.max", "memory.current", "inactive_file")
            elif "memory" in controllers.split(","):
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
                yield from _upwards(_GROUPS / "memory", name, *names)


def _upwards(root: Path, name: str, limit: str, usage: str, reclaimable: str) -> Iterator[tuple[int, int]]:
    # A container may be told the name that its host knows it by, and see that directory as the root alone.
    group = root / name.lstrip("/")
    for directory in (group, *group.parents):
        with suppress(OSError, ValueError):  # without a limit there is no such file, or `max` in it
            allowed = int((directory / limit).read_text())
            cached = dict(line.split() for line in (directory / "memory.stat").read_text().splitlines())
            yield allowed, int((directory / usage).read_text()) - int(cached.get(reclaimable, 0))
        if directory == root:
            return

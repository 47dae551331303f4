"""What results were computed with: versions, commit, machine. Imports no library, as `--version` asks for it alone."""

from __future__ import annotations

import platform
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any


@cache
def commit() -> str | None:
    """Returns the commit of a checkout of Spunge; None of an installed one.

    A copy installed into a project's own environment lies within that project's repository, which is not asked. Git's
    files are read and git is not called: a run starts no programs.
    """
    root = Path(__file__).parents[3]
    if not (root / "src" / "spunge").is_dir():
        return None
    try:
        directory = root / ".git"
        if directory.is_file():  # a further working tree names its own
            directory = Path(directory.read_text(encoding="utf-8").removeprefix("gitdir:").strip())
        head = (directory / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref: "):
            return head[:12]
        shared = directory / "commondir"
        common = directory / shared.read_text(encoding="utf-8").strip() if shared.exists() else directory
        branch = common / head.removeprefix("ref: ")
        if branch.exists():
            return branch.read_text(encoding="utf-8")[:12]
        packed = (common / "packed-refs").read_text(encoding="utf-8").splitlines()
        return next((line[:12] for line in packed if line.endswith(f" {head.removeprefix('ref: ')}")), None)
    except OSError:  # no checkout, or not one that may be read: a page without a commit
        return None


def environment(device: str) -> dict[str, Any]:
    """Returns the versions and the device that results were computed with."""
    packages = ("spunge", "torch", "transformers", "peft", "safetensors", "polars")
    return {
        "python": platform.python_version(), "commit": commit(),
        **{package: metadata.version(package) for package in packages},
        "platform": platform.platform(terse=True), "device": device,
    }  # fmt: skip

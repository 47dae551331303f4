"""Seeds as values: random draws that neither disturb the global generators nor depend on how often a run stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int, device: str) -> Iterator[None]:
    """Seeds torch inside, and leaves its global generators as they were."""
    cuda = torch.device(device).type == "cuda"
    with torch.random.fork_rng(devices=[torch.device(device)] if cuda else []):
        reseed(seed, device)
        yield


def reseed(seed: int, device: str) -> None:
    """Seeds torch's global generators of the CPU and of a device.

    Not `torch.manual_seed` on the CPU: it notes each call, with its stack, for every kind of device that was not begun
    yet. Done at each step that takes time, and memory that never comes back.
    """
    torch.default_generator.manual_seed(seed)
    if torch.device(device).type != "cpu":
        torch.manual_seed(seed)


def seed_of(*parts: int) -> int:
    """A seed for one forward pass, so that dropout does not depend on how often a run was interrupted."""
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:7], "little")

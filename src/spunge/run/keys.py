"""The key that decides whether a stage's result is reused, and the seed of a task: hashes of what they depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def key(stage: str, inputs: Mapping[str, Any]) -> str:
    """Returns the sha256 of a stage and its inputs as canonical JSON, shortened to 32 hexadecimal digits."""
    return hashlib.sha256(canonical({"stage": stage, "inputs": inputs}).encode()).hexdigest()[:32]


def canonical(value: Any) -> str:
    """Returns the one JSON text of a value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def derived_seed(seed: int, stage: str, name: str) -> int:
    """Returns the seed of one task: a hash of the run's seed, the stage and the subset's name."""
    return int.from_bytes(hashlib.sha256(canonical([seed, stage, name]).encode()).digest()[:6], "big")

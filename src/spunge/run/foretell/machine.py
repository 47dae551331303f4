"""What this machine has: free memory and disk, and how fast it multiplies matrices."""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from spunge.interfaces import Forecast
from spunge.weights.device import free_memory

_CALL = 3e-4
"""Seconds for calling one layer, whatever it computes: Python, and the start of a dozen kernels. Of a Llama of width 64
and one token it was 0.28 ms in float32 and 0.37 in bfloat16, and the backward pass twice that."""
_NUMBER = 1e-8
"""Seconds for a number of a merge, where files, sha256 and sorting count rather than what is computed: 7 ns of five
checkpoints of 670 M numbers, 12 of five adapters of SmolLM2, which are multiplied out first."""
_TASK = 0.05
"""Seconds for any artifact: its key, its manifest, two fsyncs and a rename, 2 ms on an idle disk, and what a method
prepares. A task of one step of RMU on the embedded model came to 0.08."""
PROCESS = 450 * 2**20
"""Bytes of a process with its libraries, which count where it computes on the CPU: 404 to 512 MiB by its end on the
embedded models."""
BYTES_A_WORD = 1200
"""Bytes that a tokenizer takes for each word of its vocabulary: 940 for SmolLM2's, 1,230 for Gemma 3's."""


@dataclass(frozen=True)
class Machine:
    """A device, and the disk that a run would write to."""

    device: str
    memory: int
    """Bytes that are free on the device."""
    disk: int
    """Bytes that are free on the disk."""
    process: int
    """Bytes of that memory which a process takes before it holds anything."""

    def seconds(self, takes: Forecast, dtype: str) -> float:
        """Returns how long work takes here, if nobody else uses the machine."""
        computing = (takes.operations or 0.0) / rate(self.device, dtype)
        return _TASK + takes.calls * _CALL + takes.merged * _NUMBER + computing


def look_at(device: str, out: Path, memory: int | None = None) -> Machine:
    """Returns what a device and the disk below a runs root have.

    Args:
        device: A torch device.
        out: The runs root, which need not exist.
        memory: Bytes to plan for instead of what is free on the device.
    """
    existing = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    return Machine(
        device,
        free_memory(device) if memory is None else memory,
        shutil.disk_usage(existing).free,
        PROCESS if device == "cpu" and memory is None else 0,
    )


@lru_cache(maxsize=4)
def rate(device: str, dtype: str) -> float:
    """Returns half the floating-point operations a second that a device shows in a matrix product.

    On a CPU that others use too, its share of the time counts rather than the clock: a plan is for an idle machine.
    """
    import torch

    kind = torch.float32 if dtype == "float32" or device == "cpu" else torch.bfloat16
    width = 8192 if device.startswith("cuda") else 1024
    a, b = (torch.ones(width, width, device=device, dtype=kind) for _ in range(2))
    torch.mm(a, b)
    fastest = math.inf
    for _ in range(5):
        begun, used = time.perf_counter(), time.process_time()
        (a @ b)[0, 0].item()
        fastest = min(fastest, time.perf_counter() - begun)
        if device == "cpu":
            fastest = min(fastest, (time.process_time() - used) / torch.get_num_threads())
    return width**3 / fastest  # 2 · width³ operations, and half the rate

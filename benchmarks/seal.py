"""What it costs to check a model while it is read: GB a CPU second with its seal, without it, and of sha256 alone.

    python benchmarks/seal.py MODEL      # a directory with safetensors; a copy of it is sealed

Every tensor is read whole into memory, as a merge or an export does, files in the page cache. One thread, medians.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from spunge.weights import seal
from spunge.weights.checkpoint import Checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        sealed = Path(folder) / "sealed"
        shutil.copytree(options.model, sealed)
        seal.write(sealed)
        size = sum(file.stat().st_size for file in sealed.glob("*.safetensors")) / 1e9
        ways: dict[str, Callable[[], object]] = {
            "read, no seal": lambda: read(options.model),
            "read and checked": lambda: read(sealed),
            "sha256 alone": lambda: [hashlib.sha256(file.read_bytes()) for file in sealed.glob("*.safetensors")],
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(options.rounds):
            for way, act in ways.items():
                started = time.process_time()
                act()
                seconds[way].append(time.process_time() - started)
    print("| | CPU s | GB a CPU s |\n|---|---|---|")
    for way, rounds in seconds.items():
        middle = statistics.median(rounds)
        print(f"| {way} | {middle:.2f} | {size / middle:.2f} |")


def read(directory: Path) -> None:
    checkpoint = Checkpoint.open(directory)
    for name in checkpoint.tensors:
        checkpoint.read(name)
    checkpoint.verify()


if __name__ == "__main__":
    main()

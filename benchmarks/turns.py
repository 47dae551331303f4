"""Ways of doing the same by turns, each in a process of its own: what benchmarks of whole processes share."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterable
from typing import Any


def by_turns(ways: Iterable[str], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Starts this very program once more for each way, as often as there are rounds, with `--way WAY` added.

    Returns:
        Way → what it printed in each round (`report`).
    """
    results: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, told in results.items():
            command = [sys.executable, *sys.argv, "--way", way]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
            done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
            told.append(json.loads(done.stdout.splitlines()[-1]))
    return results


def report(training: float, losses: list[float]) -> None:
    """Prints what this process took, start and loading included, the CPU seconds of its training, and the losses."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu = usage.ru_utime + usage.ru_stime
    print(json.dumps({"cpu": cpu, "training": training, "mib": usage.ru_maxrss / 1024, "losses": losses}))

"""What `spunge plan` foretells of a recipe, beside what its run then takes: seconds by stage, and the peak of memory.

    OMP_NUM_THREADS=1 python benchmarks/forecast.py lab-knowledge
    OMP_NUM_THREADS=1 python benchmarks/forecast.py smollm2-toxigen model.id=DIR --offline-root DATA

The run computes everything, in a runs root of its own; `spunge run` takes the other words. On a machine that others use
too, seconds by the clock say what they take, so the process's CPU time stands beside.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from spunge.recipe.offline import from_folder
from spunge.recipe.reading import read
from spunge.run.foretell import plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--offline-root")
    arguments = parser.parse_args()
    experiment = read(arguments.recipe, arguments.overrides)
    if arguments.offline_root:
        experiment = from_folder(experiment, Path(arguments.offline_root))
    with tempfile.TemporaryDirectory() as directory:
        planned = plan.forecast(experiment, out=directory).steps
        command = [sys.executable, "-m", "spunge", "run", *sys.argv[1:], "--out", directory, "--jobs", "1", "--quiet"]
        subprocess.run(command, check=True, capture_output=True)
        (manifest,) = Path(directory).glob("*/manifest.json")
        stages = json.loads(manifest.read_text(encoding="utf-8"))["stages"]
    foretold, taken = summed(planned), summed(stages)
    print("| stage | tasks | foretold, s | taken, s | |\n|---|---|---|---|---|")
    tasks = Counter(stage["stage"] for stage in stages)
    for name, count in tasks.items():
        print(f"| {name} | {count} | {foretold[name]:.1f} | {taken[name]:.1f} | {ratio(foretold[name], taken[name])} |")
    said, took = foretold.total(), taken.total()
    print(f"| all | {tasks.total()} | {said:.1f} | {took:.1f} | {ratio(said, took)} |")
    process = resource.getrusage(resource.RUSAGE_CHILDREN)
    memory = max(step["memory"] or 0 for step in planned) >> 20
    used = process.ru_utime + process.ru_stime
    print(
        f"\nCPU {used:.1f} s, start and report included; memory {memory} MiB foretold, {process.ru_maxrss >> 10} taken"
    )


def summed(stages: list[dict[str, Any]]) -> Counter[str]:
    seconds: Counter[str] = Counter()
    for stage in stages:
        seconds[stage["stage"]] += stage["seconds"] or 0  # pyright: ignore[reportArgumentType]: a counter of seconds
    return seconds


def ratio(foretold: float, taken: float) -> str:
    return f"{foretold / taken:.2f}" if taken else ""


if __name__ == "__main__":
    main()

"""What the sampler of `spunge auto` is worth against random draws at equal trials, and what each rung saved.

Both have the same data, parts, methods, rungs and first trials; only what is drawn after those differs. For example

    python benchmarks/auto.py lab:model --forget lab:toxicity/forget.jsonl --retain lab:toxicity/retain.jsonl \\
        --trials 16 --damage 0.1 --seeds 3 --out /tmp/searches
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--trials", default="16", help="of each arm")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    arguments, words = parser.parse_known_args()
    print(
        "| sampler | seed | arm | forgotten on the test part | damage | cut | seconds |\n|---|---|---|---|---|---|---|"
    )
    for seed in range(arguments.seeds):
        for sampler in ("tpe", "random"):
            out = arguments.out / f"{sampler}-{seed}"
            command = [sys.executable, "-m", "spunge", "auto", arguments.model, *words, "--yes", "--quiet"]
            command += ["--trials", arguments.trials, "--sampler", sampler, "--seed", str(seed), "--out", str(out)]
            subprocess.run(command, check=True)
            show(sampler, seed, json.loads((out / "result.json").read_text(encoding="utf-8")))


def show(sampler: str, seed: int, result: dict[str, Any]) -> None:
    spent = result["time"]
    for arm, one in result["arms"].items():
        test = one["test"]
        forgotten = f"{test['forgotten']:.3f} ({test['low']:.3f} to {test['high']:.3f})"
        cut = f"{spent['cut_share']:.0%}"
        print(f"| {sampler} | {seed} | {arm} | {forgotten} | {test['damage']:.3g} | {cut} | {spent['seconds']:.0f} |")
    for rung in spent["rungs"]:
        print(f"  {rung['rows']} rows: {rung['trials']} trials, {rung['seconds']:.0f} s, saved {rung['saved']:.0f} s")


if __name__ == "__main__":
    main()

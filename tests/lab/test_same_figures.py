"""One run, the same figures: under other CPU kernels and another number of threads, within a stated bound."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

RUN = """
import json, sys, tempfile
from pathlib import Path

import polars as pl

from spunge.recipe import reading
from spunge.run import pipeline
from spunge.run.compute import Compute

changes = ["unlearn.max_batches=6", "unlearn.epochs=1", "joint.epochs=1", "controls=[joint]"]
changes += ["damage=null", "robustness=null"]
experiment = reading.parse(Path(sys.argv[1]).read_text(), overrides=changes)
run = pipeline.run(experiment, out=tempfile.mkdtemp(), compute=Compute("cpu"))
items = pl.read_parquet(run / "items.parquet").filter(pl.col("metric").is_in(["acc", "p_correct"]))
means = items.group_by("variant", "suite", "metric").agg(pl.col("value").mean()).sort("variant", "suite", "metric")
print(json.dumps(means.rows()))
"""
KERNELS = [{"ATEN_CPU_CAPABILITY": "default"}, {"OMP_NUM_THREADS": "2"}]
"""The plainest kernels, and another number of threads; each is a process, and most of what the test takes."""
BOUND = 0.005
"""Of a share: one answer of two hundred, whose options are as likely as each other to the sixth digit, may tip."""


def figures(recipe: Path, **changes: str) -> dict[tuple[str, str, str], float]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **changes}
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(recipe)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows: list[list[Any]] = json.loads(done.stdout.splitlines()[-1])
    return {(variant, suite, metric): value for variant, suite, metric, value in rows}


@pytest.mark.long
def test_kernels_and_threads_move_no_figure_by_more_than_one_answer() -> None:
    from spunge.recipe import shipped

    recipe = Path(next(iter(shipped.__path__))) / "lab-knowledge.yaml"
    first = figures(recipe)
    for changes in KERNELS:
        other = figures(recipe, **changes)
        assert other.keys() == first.keys()
        for name, value in other.items():
            assert value == pytest.approx(first[name], abs=BOUND), (changes, name)

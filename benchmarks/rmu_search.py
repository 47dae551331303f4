"""How near the search for RMU's layer, coefficient and α comes to a grid of 60 points, and in how many steps.

Every point of the grid is a run as long as the search's own, so steps compare. For example

    python benchmarks/rmu_search.py stories260K --forget forget10.jsonl --columns prompt=question response=answer \\
        --retain wikitext-2/test.txt --layers 1 2 3 --max-length 128 --learning-rate 1e-3
"""

from __future__ import annotations

import argparse
import tempfile
import time
from itertools import product
from pathlib import Path

import torch

from spunge.interfaces import Work
from spunge.rows.sources import Source, load_corpus
from spunge.steering.search import Grid, Trial, attempt, search
from spunge.unlearners.adaptive_rmu import AdaptiveRMU
from spunge.weights.language_model import LanguageModel, Resident

NEAR = 0.05
"""How far below the grid's best the search's may be; it says little where many points of the grid are as near."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    usual = Grid(())
    parser.add_argument("--forget", nargs="+", required=True)
    parser.add_argument("--retain", nargs="+", required=True)
    parser.add_argument("--columns", nargs="*", default=[], help="of the forget set, as prompt=question")
    parser.add_argument("--layers", type=int, nargs="+", required=True)
    parser.add_argument("--grid-ratios", type=float, nargs="+", default=usual.ratios)
    parser.add_argument("--grid-alphas", type=float, nargs="+", default=[*usual.alphas, 10 * usual.alphas[-1]])
    parser.add_argument("--steps", type=int, default=40, help="of a run")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    base = LanguageModel(id=options.model)
    columns = dict(column.split("=", 1) for column in options.columns)
    forget = load_corpus([Source(path=path, columns=columns) for path in options.forget])
    retain = load_corpus([Source(path=path) for path in options.retain])
    settings = AdaptiveRMU(
        layer=options.layers[0], max_steps=options.steps, batch_size=options.batch_size,
        max_length=options.max_length, retain_max_length=options.max_length, learning_rate=options.learning_rate,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        work = Work(Resident(), Path(directory), Path(directory), options.seed)
        started = time.process_time()
        found = search(settings, base, forget, retain, work, Grid(options.layers))
        seconds = time.process_time() - started
        show("search", found, options.steps, seconds)

        started = time.process_time()
        grid = [
            attempt(
                settings.model_copy(update={"layer": layer, "alpha": alpha}),
                ratio, base, forget, retain, work,
            )
            for layer, ratio, alpha in product(options.layers, options.grid_ratios, options.grid_alphas)
        ]  # fmt: skip
        seconds = time.process_time() - started
    grid.sort(key=lambda trial: -trial.score)
    show("grid", grid, options.steps, seconds)
    near = sum(trial.score >= grid[0].score - NEAR for trial in grid)
    print(f"the search's best is {grid[0].score - found[0].score:.3f} below the grid's, "
          f"at {len(found) / len(grid):.2f} of its steps; {near} points of the grid are within {NEAR}")  # fmt: skip


def show(name: str, trials: list[Trial], steps: int, seconds: float) -> None:
    """Prints what was spent, and the best trials."""
    print(f"{name}: {len(trials)} runs of {steps} steps, {seconds:.0f} s CPU")
    for trial in trials[:5]:
        cosines = f"forget cosine {trial.forget_cosine:.3f}, retain cosine {trial.retain_cosine:.3f}"
        print(f"  layer {trial.layer}, c = {trial.ratio:g} × length, α {trial.alpha:<6g} {cosines}, "
              f"score {trial.score:.3f}")  # fmt: skip


if __name__ == "__main__":
    main()

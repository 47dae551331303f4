"""Finds layer, steering coefficient and α for a model that nobody has tuned RMU for, in about ten short runs.

The activations' own length makes coefficients comparable between models: what is searched is the ratio of c to it. From
the middle of every range, one setting at a time is moved to its best value: α first, because under a wrong one nothing
else shows; then the layer, the ratio, and α's neighbours once more. Runs share the truncated models and the cached
hidden states.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

from spunge.errors import RecipeError, TrainingDiverged
from spunge.interfaces import Work, silent
from spunge.rows.sources import Corpus
from spunge.steering.loop import steer
from spunge.steering.settings import TABLE, Steering
from spunge.steering.truncated import skeleton_of
from spunge.training.checkpointing import METRICS
from spunge.weights.language_model import LanguageModel

WINDOW = 5


@dataclass(frozen=True)
class Trial:
    """One short run and how it ended."""

    layer: int
    ratio: float
    """c over the mean length of the base model's activations."""
    alpha: float
    steering_coefficient: float | None
    """c, averaged over the topics; None where the run diverged."""
    forget_cosine: float
    """Mean over the last steps; small is what is wanted."""
    retain_cosine: float
    """Mean over the last steps; 1 is what is wanted."""

    @property
    def score(self) -> float:
        """What is held less what is left; past a right angle nothing more is forgotten."""
        return self.retain_cosine - max(self.forget_cosine, 0.0)


class Grid(NamedTuple):
    """What is tried, each in order."""

    layers: Sequence[int]
    """A quarter to half of the depth is usual."""
    ratios: Sequence[float] = (1.0, 2.0, 4.0, 8.0)
    """Of c to the activations' length."""
    alphas: Sequence[float] = (1.0, 10.0, 100.0, 1000.0)
    """The weights of the retain loss."""


def search(
    settings: Steering,
    base: LanguageModel,
    forget: Corpus,
    retain: Corpus,
    work: Work,
    grid: Grid,
) -> list[Trial]:
    """Returns the trials, the best first; leaves them as lines of `search.jsonl` too.

    Args:
        settings: Everything that is not searched; `max_steps` says how long a trial is, and is best as long as the run
            it is for.
        base: The model.
        forget: The forget set.
        retain: The retain set.
        work: How to run.
        grid: What to try.

    Raises:
        RecipeError: `update_layers` lie above a layer to try.
        SpungeError: As the run itself would.
    """
    if settings.update_layers is not None and max(settings.update_layers) > min(grid.layers):
        raise RecipeError(
            f"update_layers {list(settings.update_layers)} lie above layer {min(grid.layers)}, which is to be tried: "
            "leave them open, or try deeper layers only"
        )
    skeleton_of(base, max(grid.layers) + 1)  # a layer beyond the model is refused now, not after half of the trials
    trials: dict[tuple[float, ...], Trial] = {}
    most = sum(len(values) - 1 for values in grid) + 3

    def score(point: Sequence[int]) -> float:
        layer, ratio, alpha = setting = tuple(values[index] for values, index in zip(grid, point, strict=True))
        if setting not in trials:
            tried = settings.model_copy(update={"layer": layer, "alpha": alpha})
            trials[setting] = attempt(tried, ratio, base, forget, retain, work)
            work.progress("search", len(trials), most, score=trials[setting].score)
        return trials[setting].score

    climb(score, [len(values) for values in grid])
    best_first = sorted(trials.values(), key=lambda trial: -trial.score)
    lines = [json.dumps({**asdict(trial), "score": trial.score}) + "\n" for trial in best_first]
    (work.output / TABLE).write_text("".join(lines))
    return best_first


def climb(score: Callable[[Sequence[int]], float], sizes: Sequence[int]) -> None:
    """Asks for the score of points of a grid of layers, ratios and alphas, from its middle along one axis at a time."""
    point = [size // 2 for size in sizes]

    def moved(axis: int, index: int) -> list[int]:
        return [*point[:axis], index, *point[axis + 1 :]]

    for axis in (2, 0, 1):
        point[axis] = max(range(sizes[axis]), key=lambda index, axis=axis: score(moved(axis, index)))
    for index in {max(point[2] - 1, 0), min(point[2] + 1, sizes[2] - 1)}:
        score(moved(2, index))


def attempt(settings: Steering, ratio: float, base: LanguageModel, forget: Corpus, retain: Corpus, work: Work) -> Trial:
    """Runs one trial; a diverging one forgets nothing and holds nothing."""
    alpha = settings.alpha
    assert isinstance(alpha, float)
    directory = work.scratch / f"layer {settings.layer}, ratio {ratio:g}, alpha {alpha:g}"
    directory.mkdir(parents=True, exist_ok=True)
    quiet = replace(work, output=directory, scratch=directory, progress=silent)
    try:
        vector = steer(
            settings.model_copy(update={"cosine_every": 1}),
            base,
            forget,
            retain,
            quiet,
            coefficient=lambda _, norm: ratio * norm,
        )
    except TrainingDiverged:
        return Trial(settings.layer, ratio, alpha, None, 1.0, 0.0)
    records = [json.loads(line) for line in (directory / METRICS).read_text().splitlines()]
    coefficients = list(vector.provenance["coefficients"].values())

    def recent(figure: str) -> float:
        values = [record[figure] for record in records if record[figure] is not None][-WINDOW:]
        return sum(values) / len(values)

    return Trial(
        settings.layer,
        ratio,
        alpha,
        sum(coefficients) / len(coefficients),
        recent("forget_cosine"),
        recent("retain_cosine"),
    )

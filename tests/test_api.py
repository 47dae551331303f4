"""The Python API: overrides reach an experiment however it is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import spunge
from spunge.errors import RecipeError
from spunge.recipe.schema import Experiment
from spunge.run import pipeline


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Experiment]:
    """The experiments that were run, none of them really."""
    experiments: list[Experiment] = []

    def run(experiment: Experiment, **options: Any) -> Path:
        experiments.append(experiment)
        return Path()

    monkeypatch.setattr(pipeline, "run", run)
    return experiments


def test_overrides_change_an_experiment_as_they_change_a_recipe(world: dict[str, Any], ran: list[Experiment]) -> None:
    experiment = Experiment.model_validate(world)
    spunge.run(experiment, "merge.density=0.9", "seeds=[1, 2]")
    spunge.run(experiment)
    changed, unchanged = ran
    assert (changed.merge.dump()["density"], changed.seeds) == (0.9, [1, 2])
    assert changed.model_copy(update={"merge": experiment.merge, "seeds": [0]}) == experiment
    assert unchanged is experiment


@pytest.mark.parametrize("word", ["merge.densty=0.9", "mrge.density=0.9", "merge.density"])
def test_a_misspelt_override_of_an_experiment_is_refused(
    world: dict[str, Any], ran: list[Experiment], word: str
) -> None:
    with pytest.raises(RecipeError, match=word.partition(".")[0]):
        spunge.run(Experiment.model_validate(world), word)
    assert not ran


def test_the_package_of_a_run_does_not_take_the_functions_name() -> None:
    import spunge.run.pipeline

    assert callable(spunge.run)

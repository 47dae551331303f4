"""What the stage that unlearns leaves, and what it refuses to leave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spunge.errors import RecipeError
from spunge.recipe.schema import Experiment
from spunge.run import pipeline


def test_a_training_that_changed_nothing_leaves_no_artifact(world: dict[str, Any], tmp_path: Path) -> None:
    experiment = Experiment.model_validate({**world, "unlearn": {**world["unlearn"], "learning_rate": 1e-30}})
    with pytest.raises(RecipeError, match=r"rmu: every weight is the base's after \d+ steps: nothing was unlearned"):
        pipeline.run(experiment, out=tmp_path)
    assert not list((tmp_path / "store").glob("unlearn/*/manifest.json"))

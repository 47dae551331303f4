"""The examples of docs/adding_a_method.md, run as they stand there."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from training_models import answers, save_model, work_in

from spunge.recipe import reading, schema
from spunge.run.identity import identity

PAGE = (Path(__file__).parent.parent / "docs" / "adding_a_method.md").read_text(encoding="utf-8")
AROUND = """
name: page
model: {id: "lab:model"}
forget: {sources: [{path: "lab:knowledge/forget.jsonl"}]}
retain: {sources: [{path: "lab:knowledge/retain.jsonl"}]}
split: {by: column, column: domain}
merge: {method: ties}
evaluate: [{suite: s, method: multiple_choice, goal: forget, sources: [{path: "lab:knowledge/hazards.jsonl"}]}]
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the page puts its modules."""
    (tmp_path / "my_package").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, code in zip(("mine", "levelling"), blocks("python"), strict=True):
        (tmp_path / "my_package" / f"{name}.py").write_text(code, encoding="utf-8")
    return tmp_path


def test_the_first_example_is_a_method(outside: Path) -> None:
    from my_package.mine import Mine  # pyright: ignore[reportMissingImports]

    found = Mine(strength=2).unlearn(save_model(outside / "model"), answers(), None, work_in(outside))
    assert (len(found), found.provenance) == (0, {"steps": 0})
    described = Mine.model_json_schema()["properties"]["strength"]["description"]
    assert described == "What this number means, with its unit."


def test_the_trained_method_from_outside_levels_what_it_forgets(outside: Path) -> None:
    [recipe] = blocks("yaml")
    method: Any = reading.parse(AROUND + recipe).unlearn
    assert (method.temperature, method.learning_rate) == (2, 5e-3)
    kind, digest = identity(method)["class"]
    assert kind == "my_package.levelling:Levelling"
    assert re.fullmatch("[0-9a-f]{64}", digest)
    work = work_in(outside)
    quick = schema.overridden(method, {"epochs": 8, "batch_size": 5, "learning_rate": 2e-2, "alpha": 0.1})
    found = quick.unlearn(save_model(outside / "model"), answers(10), answers(10, seed=100), work)
    assert found.norm > 0
    steps = [json.loads(line) for line in (work.output / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == 16
    assert steps[-1]["forget"] < steps[0]["forget"]
    assert {"retain", "gradient_norm", "learning_rate"} <= set(steps[0])

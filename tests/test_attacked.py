"""The tables of what attacks brought back are those of the notes, and the recipe and the suite can be read."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from spunge.evaluators.attacks import Membership
from spunge.recipe import reading
from spunge.recipe.schema import Experiment

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "studies" / "attacked"


@pytest.fixture(scope="module")
def table() -> Any:
    spec = importlib.util.spec_from_file_location("attacked_table", FOLDER / "table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "names",
    [["birthdays-npo", "birthdays-rmu", "birthdays-tvn"], ["birthdays-npo-sharp"], ["toxigen-tvn"]],
    ids=lambda names: names[0],
)
def test_the_documents_tables_are_made_of_the_notes(table: Any, names: list[str]) -> None:
    notes = [json.loads((FOLDER / "results" / f"{name}.json").read_text(encoding="utf-8")) for name in names]
    told = (ROOT / "docs" / "robustness.md").read_text(encoding="utf-8")
    assert "\n".join(table.table(notes)) in told


def test_the_recipe_and_the_suite_can_be_read() -> None:
    recipe = Experiment.model_validate(YAML(typ="safe").load((FOLDER / "birthdays.yaml").read_text(encoding="utf-8")))
    [membership] = [one for one in recipe.evaluate if isinstance(one, Membership)]
    assert {source.path for source in membership.members} == {source.path for source in recipe.forget.sources}
    assert len(reading.read_suite(str(FOLDER / "toxigen.yaml"))) == 4


def test_a_note_is_read_as_it_was_written(table: Any) -> None:
    for file in (FOLDER / "results").glob("*.json"):
        text = file.read_text(encoding="utf-8")
        assert "".join(table.written(json.loads(text))) == text

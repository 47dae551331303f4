"""The examples of docs/adding_a_method.md: each written outside the package as it stands there, and run."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from training_models import answers, save_model, work_in

from spunge import run
from spunge.auto.spaces import space_of
from spunge.errors import DataError, RecipeError
from spunge.interfaces import Splitter
from spunge.recipe import reading
from spunge.recipe.schema import Experiment, overridden
from spunge.run.foretell import plan as planning
from spunge.run.identity import identity

PAGE = (Path(__file__).parent.parent / "docs" / "adding_a_method.md").read_text(encoding="utf-8")
WORLD = """
name: page
model: {id: "lab:model"}
forget: {sources: [{path: "lab:knowledge/forget.jsonl"}], max_rows: 16}
retain: {sources: [{path: "lab:knowledge/retain.jsonl"}]}
split: {by: column, column: domain}
unlearn: {method: simnpo, max_steps: 2, learning_rate: 1e-3}
merge: {method: ties}
evaluate:
- suite: hazards
  method: multiple_choice
  goal: forget
  style: continuation
  sources: [{path: "lab:knowledge/hazards.jsonl"}]
  where: "part = 'validation'"
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


NAMES = re.findall(r"`my_package/(\w+)\.py`", PAGE)
# What follows the methods shows fields alone, which no recipe names.
EXAMPLES = dict(zip(NAMES, zip(blocks("python")[: len(NAMES)], blocks("yaml"), strict=True), strict=True))


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the page puts its modules."""
    (tmp_path / "my_package").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, (code, _) in EXAMPLES.items():
        (tmp_path / "my_package" / f"{name}.py").write_text(code, encoding="utf-8")
    return tmp_path


def recipe_of(example: str) -> Experiment:
    """The world with what the page's recipe says."""
    changed = yaml.safe_load(EXAMPLES[example][1])
    if example == "levelling":
        changed["unlearn"]["max_steps"] = 2
    return reading.parse(json.dumps({**yaml.safe_load(WORLD), **changed}), allow_code=True)


@pytest.mark.long
@pytest.mark.parametrize("example", ["levelling", "noising", "by_length", "middle", "likeness", "louder"])
def test_every_example_goes_through_a_default_run(outside: Path, example: str) -> None:
    recipe = recipe_of(example)
    assert recipe.controls == ["joint", "joint_equal_steps", "random_split"]
    directory = run(recipe, out=outside / "runs")
    manifest = json.loads((directory / "manifest.json").read_text())
    variants = {variant["name"]: variant for variant in manifest["variants"]}
    subsets = (
        {"subset:short", "subset:long"} if example == "by_length" else {"subset:venom_brewing", "subset:glyph_breaking"}
    )
    expected = {"base", "joint", "joint_equal_steps", "spunge", "random_split", *subsets}
    if example == "noising":
        expected.remove("joint_equal_steps")
        line = "joint equal steps: Noising counts no steps (it has no `lengthened`)"
        assert line in manifest["not_run"]
        page = (directory / "report" / "results.md").read_text()
        assert "Not run: joint equal steps: Noising counts no steps" in page.replace("\\", "")
    if example == "likeness":
        results = json.loads((directory / "report" / "results.json").read_text())
        assert {row["metric"] for row in results["comparisons"]} == {"likeness"}
        assert "likeness of the words" in (directory / "report" / "results.md").read_text()
    if example == "louder":
        attacks = json.loads((directory / "report" / "results.json").read_text())["attacks"]
        assert {(row["suite"], row["setting"]) for row in attacks} == {("hazards: Louder", "1.1 times")}
    assert variants.keys() == expected
    assert all(variant["norm"] > 0 for name, variant in variants.items() if name != "base")
    again = planning.plan(recipe_of(example), out=outside / "runs")
    assert {step["status"] for step in again} == {"reused"}


def test_the_trained_method_from_outside_levels_what_it_forgets(outside: Path) -> None:
    method: Any = recipe_of("levelling").unlearn
    assert (method.temperature, method.learning_rate) == (2, 5e-3)
    kind, digest = identity(method)["class"]
    assert kind == "my_package.levelling:Levelling"
    assert re.fullmatch("[0-9a-f]{64}", digest)
    work = work_in(outside)
    quick = overridden(method, {"epochs": 8, "max_steps": None, "batch_size": 5, "learning_rate": 2e-2, "alpha": 0.1})
    found = quick.unlearn(save_model(outside / "model"), answers(10), answers(10, seed=100), work)
    assert found.norm > 0
    steps = [json.loads(line) for line in (work.output / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == 16
    assert steps[-1]["forget"] < steps[0]["forget"]
    assert {"retain", "gradient_norm", "learning_rate"} <= set(steps[0])


STEPLESS = """
from my_package.noising import Noising

class Counting(Noising):
    epochs: int = 1

    def lengthened(self, steps, *, taken):
        return self
"""


def test_a_method_that_counts_steps_and_notes_none_is_told_after_the_first_subset(outside: Path) -> None:
    (outside / "my_package" / "counting.py").write_text(STEPLESS, encoding="utf-8")
    recipe = {**yaml.safe_load(WORLD), "unlearn": {"method": "my_package.counting:Counting"}}
    with pytest.raises(RecipeError, match=r"^Counting: `lengthened` says .* has no `steps`: note them there"):
        run(reading.parse(json.dumps(recipe), allow_code=True), out=outside / "runs")


WRONG = """
from spunge.interfaces import Splitter

class Short(Splitter):
    def split(self, forget, base, work):
        return [("a",)]

class Bare(Splitter):
    def split(self, forget, base, work):
        return ["ab"] * len(forget)

class Numbered(Splitter):
    def split(self, forget, base, work):
        return [(1,)] * len(forget)
"""


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("Short", r"^Short: `split` returned 1 rows' subsets for \d+ rows: return a tuple of names for every row"),
        ("Bare", r"^Bare: `split` returned 'ab' for row 1: return a tuple of names"),
        ("Numbered", r"^Numbered: `split` returned \(1,\) for row 1: return a tuple of names"),
    ],
)
def test_a_splitters_result_is_checked_where_it_comes_in(outside: Path, kind: str, message: str) -> None:
    (outside / "my_package" / "wrong.py").write_text(WRONG, encoding="utf-8")
    recipe = {**yaml.safe_load(WORLD), "split": {"by": f"my_package.wrong:{kind}"}}
    experiment = reading.parse(json.dumps(recipe), allow_code=True)
    assert isinstance(experiment.split, Splitter)
    with pytest.raises(DataError, match=message):
        planning.plan(experiment, out=outside / "runs")


def test_what_auto_may_try_is_what_the_page_declares() -> None:
    names: dict[str, Any] = {}
    exec(compile(blocks("python")[-1], "adding_a_method.md", "exec"), names)
    space = space_of("softer", names["Softer"], layers=10)
    assert {"beta", "layer", "schedule", "learning_rate"} <= {one.name for one in space.dimensions}
    assert space.first["softer.beta"] == 0.1

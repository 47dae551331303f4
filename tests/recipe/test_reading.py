"""Recipes: reading, overrides, and errors that name place and fix."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spunge.errors import RecipeError
from spunge.interfaces import Block, Merger, Needs
from spunge.recipe import reading, schema, shipped
from spunge.settings import name_of

RECIPE = """\
name: mine
model: {id: some/model}
forget:
  sources: [{path: forget.jsonl}]
retain: {sources: [{path: retain.jsonl}]}
split: {by: column, column: domain}
unlearn:
  method: rmu
  layer: 7
  alpha: 1200
  learning_rate: 5e-5
merge: {method: ties, density: 0.2, lambda: 1.5}
evaluate:
  - {suite: s, method: multiple_choice, goal: forget, sources: [{path: items.jsonl}]}
"""


def test_null_is_a_setting_like_any_other() -> None:
    recipe = reading.parse(RECIPE.replace("column: domain}", "column: domain, null: drop}"))
    assert recipe.split.dump()["null"] == "drop"


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("valuess: {}", r"r\.yaml:6:37: split\.valuess: unknown setting; did you mean 'values'\?"),
        ("min_size: 0", r"r\.yaml:6:37: split\.min_size: .*greater than or equal to 1 \(got 0\)"),
        ("several: evry", r"r\.yaml:6:37: split\.several: Input should be 'every'"),
    ],
)
def test_a_split_by_column_blames_the_right_setting(extra: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        reading.parse(RECIPE.replace("column: domain}", f"column: domain, {extra}}}"), name="r.yaml")


@pytest.mark.parametrize(
    ("word", "spelt"),
    [
        ("model=models/mine", "{id: models/mine}"),
        ("split=topic", "{by: column, column: topic}"),
        ("split=column", "{by: column}"),
        ("unlearn=npo", "{method: npo}"),
        ("merge=ties", "{method: ties}"),
    ],
)
def test_who_writes_the_one_thing_that_matters_is_told_how_to_spell_its_section(word: str, spelt: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(f"a section is wanted: write {spelt}")):
        reading.parse(RECIPE, overrides=[word])


def test_a_recipe_is_read() -> None:
    recipe = reading.parse(RECIPE)
    assert recipe.unlearn.learning_rate == 5e-5  # pyright: ignore[reportAttributeAccessIssue]
    assert recipe.merge.dump()["lambda"] == 1.5
    assert recipe.controls == ["joint", "joint_equal_steps", "random_split"]


def test_a_resolved_recipe_reads_back_equal() -> None:
    recipe = reading.parse(RECIPE, overrides=["joint.epochs=3", "subsets.bio.alpha=7", "seeds=[0,1]"])
    assert reading.parse(reading.dump(recipe)) == recipe


def test_a_subset_or_the_joint_run_may_differ() -> None:
    recipe = reading.parse(RECIPE, overrides=["subsets.bio.alpha=7", "joint={epochs: 2, alpha: null}"])
    assert recipe.subset_unlearner("bio").dump()["alpha"] == 7
    assert recipe.subset_unlearner("cyber").dump()["alpha"] == 1200
    default = type(recipe.unlearn).model_fields["alpha"].default
    assert recipe.joint_unlearner.dump()["alpha"] == default
    assert recipe.joint_unlearner.dump()["epochs"] == 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("alpha: 1200", "alhpa: 1200", r"r\.yaml:10:3: unlearn\.alhpa: unknown setting; did you mean 'alpha'\?"),
        ("alpha: 1200", "alpha: -3", r"r\.yaml:10:3: unlearn\.alpha: .*greater than or equal to 0 \(got -3\)"),
        ("alpha: 1200", "alpha: true", r"r\.yaml:7:1: unlearn: alpha is true, and should be a number"),
        ("density: 0.2", "density: much", r"r\.yaml:12:23: merge\.density: .*\(got 'much'\)"),
        ("name: mine", "name: ../mine", r"r\.yaml:1:1: name: must be letters"),
        ("name: mine", "name: store", r"name: is the store's own directory"),
        (
            "name: mine",
            "name: mine\njoint: {epoch: 1}",
            r"r\.yaml:2:9: joint\.epoch: unknown setting; did you mean 'epochs'",
        ),
        (
            "alpha: 1200",
            "dtype: bf16",
            r"unlearn\.dtype: unknown setting; did you mean model\.dtype, or 'loss_dtype' here\?",
        ),
        ("name: mine", "name: mine\nseeds: 3", r"r\.yaml:2:1: seeds: a list is wanted: write \[3\]"),
        ("name: mine", "nmae: mine", r"r\.yaml:1:1: nmae: unknown setting; did you mean 'name'\?"),
        ("method: rmu", "method: rmuu", r"r\.yaml:7:1: unlearn: unknown method 'rmuu'; did you mean 'rmu'\?"),
        ("  method: rmu\n", "", r"r\.yaml:7:1: unlearn: say its method"),
        (
            "split: {by: column",
            "spilt: {by: column",
            r"spilt: unknown setting; did you mean 'split'\?",
        ),
        ("[{path: forget.jsonl}]", "[]", r"forget\.sources: .*at least 1"),
        (
            "name: mine",
            "name: mine\nsubsets: {bio: {alph: 1}}",
            r"subsets\.bio\.alph: unknown setting; did you mean 'alpha'",
        ),
        (
            "name: mine",
            "name: mine\njoint: {method: npo}",
            r"r\.yaml:2:9: joint\.method: an override cannot change the method",
        ),
        ("layer: 7", "layer: [7", r"r\.yaml:\d+:\d+: not YAML"),
        ("layer: 7", "layer: 7\n  layer: 8", r"r\.yaml:10:3: not YAML: .*duplicate key"),
        ("{suite: s, method: multiple_choice, goal: forget,", "{suite: nosuch,", r"'nosuch' is no suite"),
        ("method: rmu", "method: no.such:Thing", r"r\.yaml:\d+:\d+: unlearn: 'no.such:Thing' would run .*--allow-code"),
    ],
)
def test_mistakes_are_named_with_their_place(old: str, new: str, message: str) -> None:
    assert old in RECIPE
    with pytest.raises(RecipeError, match=message) as raised:
        reading.parse(RECIPE.replace(old, new), name="r.yaml")
    assert "\n" not in str(raised.value)


@given(st.text(max_size=60))
def test_any_text_is_a_recipe_or_a_clean_error(text: str) -> None:
    with pytest.raises(RecipeError):
        reading.parse(text)


def test_a_mistake_after_a_suite_of_several_is_named_with_its_own_line() -> None:
    text = RECIPE.replace("evaluate:\n", "evaluate:\n  - {suite: paper-ten}\n")
    count = len(reading.parse(text).evaluate)
    assert count > 2
    with pytest.raises(RecipeError, match=rf"r\.yaml:15:41: evaluate\.{count - 1}\.gaol: .*'goal'"):
        reading.parse(text.replace("goal: forget", "gaol: forget"), name="r.yaml")
    with pytest.raises(RecipeError, match=r"r\.yaml:14:5: evaluate\.0: 'paper-tne' is no suite .*'paper-ten'"):
        reading.parse(text.replace("paper-ten", "paper-tne"), name="r.yaml")


def test_an_experiment_is_overridden_like_its_recipe() -> None:
    recipe = reading.parse(RECIPE)
    words = ["merge.density=0.9", "unlearn.alpha=3", "joint.epochs=2", "evaluate.0.suite=other"]
    assert reading.override(recipe, words) == reading.parse(RECIPE, overrides=words)
    assert reading.override(recipe, []) is recipe
    # What the recipe leaves open stays open: a search may fill it in.
    assert reading.override(recipe, words).unlearn.model_fields_set == recipe.unlearn.model_fields_set
    with pytest.raises(RecipeError, match=r"override 'merge\.densty=1': merge\.densty: .*did you mean 'density'"):
        reading.override(recipe, ["merge.densty=1"])


def test_an_experiment_of_a_local_class_can_be_overridden_elsewhere() -> None:
    class Mine(Merger):
        def needs(self) -> Needs:
            return Needs()

        def combine(self, block: Block) -> Any:
            return block.deltas[0]

    recipe = reading.parse(RECIPE).model_copy(update={"merge": Mine()})
    changed = reading.override(recipe, ["unlearn.alpha=3"])
    assert changed.merge is recipe.merge
    with pytest.raises(RecipeError, match="cannot be imported"):
        reading.override(recipe, ["merge.lambda=3"], allow_code=True)


@pytest.mark.parametrize(
    ("long", "message"),
    [
        ("\nseeds: [" + "x," * 60_000 + "1]", r"seeds\.0: Input should be a valid integer"),
        ("\nseeds: '" + "x" * 800_000 + "'", r"seeds: .*a list is wanted"),
        ("\ncontrols: [" + "x," * 60_000 + "joint]", r"controls\.0: Input should be"),
        (
            "\nsubsets: {" + ",".join(f"k{at}: {{a: 1}}" for at in range(9_000)) + "}",
            r"subsets\.k0\.a: unknown setting",
        ),
        (
            "\nsweep: {merge.density: [" + ",".join(f"0.{at + 10001}" for at in range(3_000)) + "], "
            "merge.lambda: [" + ",".join(f"1.{at + 10001}" for at in range(3_000)) + "]}",
            "9000000 combinations are more than a run may try",
        ),
    ],
)
def test_what_is_long_is_read_in_little_time(long: str, message: str) -> None:
    began = time.process_time()
    with pytest.raises(RecipeError, match=message) as raised:
        reading.parse(RECIPE + long, name="r.yaml")
    assert time.process_time() - began < 20  # a fifth of that on an idle machine; quadratic time took over a minute
    assert len(str(raised.value)) < 2_000


def test_missing_files_and_names(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such recipe file"):
        reading.read(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="did you mean 'lab-knowledge'"):
        reading.read("lab-knowlege")


def test_every_shipped_recipe_is_valid() -> None:
    for name in shipped.recipes():
        assert reading.read(name).description, name


def test_a_class_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "from spunge.interfaces import Merger, Needs\n"
        "class First(Merger):\n"
        "    factor: float = 1.0\n"
        "    def needs(self): return Needs()\n"
        "    def combine(self, block): return block.deltas[0] * self.factor\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    recipe = reading.parse(
        RECIPE.replace("{method: ties, density: 0.2, lambda: 1.5}", "{method: 'mine:First', factor: 2}"),
        allow_code=True,
    )
    assert isinstance(recipe.merge, Merger)
    assert reading.parse(reading.dump(recipe), allow_code=True) == recipe


def test_a_class_from_outside_is_not_the_method_whose_name_it_inherited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "derived.py").write_text(
        "from spunge.mergers.ties import Ties\n"
        "from spunge.evaluators.perplexity import Perplexity\n"
        "class Mine(Ties):\n"
        "    factor: float = 1.0\n"
        "class Asked(Perplexity):\n"
        "    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    text = RECIPE.replace("{method: ties, density: 0.2, lambda: 1.5}", "{method: 'derived:Mine', factor: 2}")
    recipe = reading.parse(text, allow_code=True)
    asked = {"suite": "mine", "method": "derived:Asked", "goal": "retain", "sources": [{"path": "a.txt"}]}
    evaluators = [reading.validate(schema.AnyEvaluate, asked, "evaluate", allow_code=True)]
    recipe = recipe.model_copy(update={"evaluate": evaluators})
    again = reading.parse(reading.dump(recipe), allow_code=True)
    assert again == recipe
    assert [type(one).__name__ for one in (again.merge, *again.evaluate)] == ["Mine", "Asked"]
    assert name_of(recipe.merge) == "derived:Mine"


def test_reading_a_recipe_needs_no_torch() -> None:
    code = (
        "import sys; from spunge.recipe import reading, schema, shipped; schema.json_schema(); schema.methods();"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_schema_documents_every_setting() -> None:
    def undocumented(kind: Any) -> list[str]:
        fields = kind.model_fields.items()
        return [name for name, field in fields if name not in ("method", "by") and not field.description]

    for kinds in schema.methods().values():
        for name, kind in kinds.items():
            assert undocumented(kind) == [], name
    assert undocumented(schema.Experiment) == []


def test_read_suite(write_recipe: Callable[[dict[str, Any]], Path], world: dict[str, Any]) -> None:
    file = write_recipe(world)
    assert [evaluator.suite for evaluator in reading.read_suite(str(file))] == ["hazards"]
    with pytest.raises(RecipeError, match="neither a file nor a suite that ships"):
        reading.read_suite("nosuch")
    (file.parent / "suite.yaml").write_text("- {suite: s, method: multiple_choice, goal: forget, sorces: []}\n")
    with pytest.raises(RecipeError, match=r"suite\.yaml:1:53: evaluate\.0\.sorces: .*did you mean 'sources'"):
        reading.read_suite(str(file.parent / "suite.yaml"))


def test_an_override_resets_what_it_nulls_and_keeps_the_methods_own_nulls() -> None:
    from spunge.unlearners.gradient_difference import GradientDifference

    whole = GradientDifference(lora=None, epochs=3)
    assert schema.overridden(whole, {}).lora is None
    changed = schema.overridden(whole, {"epochs": None, "batch_size": 2})
    assert (changed.lora, changed.epochs, changed.batch_size) == (None, 1, 2)
    assert schema.overridden(whole, {"lora": None}).lora is not None

"""Code that a recipe names runs with `--allow-code` and not without, wherever the recipe names it."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import spunge
from spunge.cli import commands
from spunge.errors import RecipeError
from spunge.recipe import reading
from spunge.splitters import ByFunction

MODULE = """
open({mark!r}, "w").close()
from spunge.interfaces import Evaluator, Merger, Needs, Splitter, Unlearner

def half(row):
    return "a" if len(row["text"]) % 2 else "b"

class Half(Splitter):
    def split(self, forget, base, work):
        return [(half({{"text": text}}),) for text in forget.texts]

class Nothing(Unlearner):
    def unlearn(self, base, forget, retain, work):
        from spunge.weights.task_vector import TaskVector
        import torch
        checkpoint = base.checkpoint()
        name = "model.layers.1.mlp.down_proj.weight"
        return TaskVector({{name: torch.full(checkpoint.tensors[name].shape, 1e-3 * (1 + work.seed % 7))}})

class First(Merger):
    def needs(self):
        return Needs()

    def combine(self, block):
        return block.deltas[0]

class Silent(Evaluator):
    def evaluate(self, variant, work):
        raise NotImplementedError

class Bare(Unlearner):
    pass
"""


def test_a_setting_that_its_kind_has_elsewhere_is_not_suggested_to_itself(mark: Path, tmp_path: Path) -> None:
    suite = '{suite: s, goal: forget, method: "beside_it:Silent", limit: 3}'
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"evaluate: [{suite}]\n")
    with pytest.raises(RecipeError, match=r"evaluate\.0\.limit: unknown setting(?!; did you mean)"):
        reading.read(recipe, allow_code=True)


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    """What the module beside the recipe leaves when it runs."""
    (tmp_path / "beside_it.py").write_text(MODULE.format(mark=str(tmp_path / "ran")))
    yield tmp_path / "ran"
    sys.modules.pop("beside_it", None)


def named(world: dict[str, Any], section: str) -> dict[str, Any]:
    """The small experiment, with code named in one section."""
    suite = world["evaluate"][0]
    return (
        world
        | {
            "split": {"split": {"by": "beside_it:Half"}},
            "function": {"split": {"by": "function", "function": "beside_it:half"}},
            "unlearn": {"unlearn": {"method": "beside_it:Nothing"}},
            "merge": {"merge": {"method": "beside_it:First"}},
            "evaluate": {"evaluate": [suite, {"method": "beside_it:Silent", "suite": "s", "goal": "retain"}]},
            "model": {"model": world["model"] | {"trust_remote_code": True}},
            "model, as a word": {"model": world["model"] | {"trust_remote_code": "on"}},
            "classifier": {"split": {"by": "classifier", "id": world["model"]["id"], "trust_remote_code": True}},
        }[section]
    )


@pytest.fixture
def spoken(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[Any, str]]:
    """Runs a command in a directory; returns its exit code and what it wrote to stderr."""

    def speak(folder: Path, *words: str) -> tuple[Any, str]:
        before = signal.getsignal(signal.SIGTERM)
        with monkeypatch.context() as patch:
            patch.chdir(folder)
            patch.setattr(sys, "argv", ["spunge", *words])
            with pytest.raises(SystemExit) as ended:
                commands.main()
        signal.signal(signal.SIGTERM, before)
        return ended.value.code, capfd.readouterr().err

    return speak


PLACES = {
    "split": r"recipe\.yaml:\d+:\d+: split: 'beside_it:Half' would run as a program",
    "function": r"recipe\.yaml:\d+:\d+: split\.function: 'beside_it:half' would run as a program",
    "unlearn": r"recipe\.yaml:\d+:\d+: unlearn: 'beside_it:Nothing' would run",
    "merge": r"recipe\.yaml:\d+:\d+: merge: 'beside_it:First' would run",
    "evaluate": r"recipe\.yaml:\d+:\d+: evaluate\.1: 'beside_it:Silent' would run",
    "model": r"recipe\.yaml:\d+:\d+: model: trust_remote_code: the code of \S+ would run",
    "model, as a word": r"recipe\.yaml:\d+:\d+: model: trust_remote_code: the code of \S+ would run",
    "classifier": r"recipe\.yaml:\d+:\d+: split: trust_remote_code: the code of \S+ would run",
}


@pytest.mark.parametrize("section", PLACES)
def test_without_permission_nothing_runs_and_one_line_names_the_place(
    world: dict[str, Any], tmp_path: Path, mark: Path, section: str
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(named(world, section), indent=1))
    with pytest.raises(RecipeError, match=rf"{PLACES[section]}.*--allow-code \(allow_code=True\)$") as raised:
        reading.read(recipe)
    assert "\n" not in str(raised.value)
    with pytest.raises(RecipeError, match="--allow-code"):
        spunge.run(recipe, out=tmp_path / "runs")
    assert not mark.exists()
    assert not (tmp_path / "runs").exists()
    assert reading.read(recipe, allow_code=True).programs


@pytest.mark.parametrize(
    "words",
    [
        ("run", "recipe.yaml", "unlearn={method: 'beside_it:Nothing'}"),
        ("run", "recipe.yaml", "--check", "unlearn={method: 'beside_it:Nothing'}"),
        ("run", "recipe.yaml", "--sweep", "unlearn.layer=1,2", "merge={method: 'beside_it:First'}"),
        ("plan", "recipe.yaml", "merge={method: 'beside_it:First'}"),
        ("unlearn", "--model", "m", "--forget", "forget.jsonl", "--out", "new", "--method", "beside_it:Nothing"),
        ("merge", "--base", "m", "a", "b", "--out", "new", "--method", "beside_it:First"),
        ("evaluate", "--model", "m", "--suite", "recipe.yaml", "--out", "new", "evaluate.0.method=beside_it:Silent"),
    ],
)
def test_no_command_runs_code_that_was_not_allowed(
    world: dict[str, Any], tmp_path: Path, mark: Path, spoken: Callable[..., tuple[Any, str]], words: tuple[str, ...]
) -> None:
    (tmp_path / "recipe.yaml").write_text(json.dumps(world))
    before = sorted(tmp_path.iterdir())
    code, errors = spoken(tmp_path, *words)
    assert code == 2, errors
    assert errors.count("\n") == 1
    assert "--allow-code" in errors
    assert not mark.exists()
    assert sorted(tmp_path.iterdir()) == before


def test_with_permission_the_module_beside_the_recipe_runs_in_every_process(
    world: dict[str, Any], tmp_path: Path, mark: Path, spoken: Callable[..., tuple[Any, str]]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    world |= named(world, "unlearn") | {"merge": {"method": "beside_it:First"}, "controls": []}
    world["split"] = {"by": "function", "function": "beside_it:half"}
    (tmp_path / "recipe.yaml").write_text(json.dumps(world))
    code, errors = spoken(elsewhere, "run", str(tmp_path / "recipe.yaml"), "--allow-code", "--jobs", "2")
    assert code == 0, errors
    assert mark.exists()


def test_a_plan_says_what_runs_as_a_program(
    world: dict[str, Any], tmp_path: Path, mark: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(json.dumps(named(world, "unlearn")))
    commands.plan(str(tmp_path / "recipe.yaml"), out=tmp_path / "runs", allow_code=True, device="cpu")
    assert "code    unlearn: beside_it:Nothing runs as a program" in capsys.readouterr().out
    assert mark.exists()


def test_only_the_named_module_is_looked_for_and_no_library_is_hidden(world: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise AssertionError('hidden')")
    (tmp_path / "other_beside.py").write_text("")
    (tmp_path / "wants_more.py").write_text("import other_beside\ndef f(row): return 'a'")
    with pytest.raises(RecipeError, match=r"'wants_more:f' cannot be imported: No module named 'other_beside'"):
        read(world, tmp_path, "wants_more:f")
    with pytest.raises(RecipeError, match=r"'json:f' cannot be imported: module 'json' has no attribute 'f'"):
        read(world, tmp_path, "json:f")


def test_a_package_beside_the_recipe_is_found_and_a_second_of_its_name_is_refused(
    world: dict[str, Any], tmp_path: Path
) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "pack_beside").mkdir(parents=True)
        (tmp_path / name / "pack_beside" / "inner.py").write_text(f"def f(row): return {name!r}")
    assert isinstance(read(world, tmp_path / "one", "pack_beside.inner:f").split, ByFunction)
    with pytest.raises(RecipeError, match=r"another module 'pack_beside' was read from .*one; give one another name"):
        read(world, tmp_path / "two", "pack_beside.inner:f")


def read(world: dict[str, Any], folder: Path, function: str) -> Any:
    recipe = folder / "recipe.yaml"
    recipe.write_text(json.dumps({**world, "split": {"by": "function", "function": function}}))
    return reading.read(recipe, allow_code=True)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (".:x", r"'\.:x' cannot be imported: write package\.module:name"),
        ("..a:x", "write package.module:name"),
        (":x", "write package.module:name"),
        ("os:", "write package.module:name"),
        ("os:a.b", "write package.module:name"),
        ("a b:x", "write package.module:name"),
        ("no_such_module:x", "No module named 'no_such_module'"),
        ("spunge.merge:Ties", "has moved"),
        ("os:name", "is no function"),
        ("raises_it:x", "cannot be imported: ZeroDivisionError: division by zero"),
        ("exits_it:x", "cannot be imported: SystemExit: 3"),
        ("broken_it:x", "cannot be imported: SyntaxError"),
    ],
)
def test_a_name_that_leads_nowhere_is_one_line(
    world: dict[str, Any], tmp_path: Path, target: str, message: str
) -> None:
    (tmp_path / "raises_it.py").write_text("1 / 0")
    (tmp_path / "exits_it.py").write_text("import sys; sys.exit(3)")
    (tmp_path / "broken_it.py").write_text("def :")
    with pytest.raises(RecipeError, match=rf"recipe\.yaml:1:\d+: split\.function: .*{message}") as raised:
        read(world, tmp_path, target)
    assert "\n" not in str(raised.value)


def test_a_class_that_cannot_be_made_is_one_line(world: dict[str, Any], tmp_path: Path, mark: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(json.dumps({**world, "unlearn": {"method": "beside_it:Bare"}}))
    with pytest.raises(
        RecipeError, match=r"recipe\.yaml:1:\d+: unlearn: 'beside_it:Bare': TypeError: .*abstract"
    ) as raised:
        reading.read(tmp_path / "recipe.yaml", allow_code=True)
    assert "\n" not in str(raised.value)


def test_a_class_of_python_needs_no_permission_and_its_recipe_does(
    world: dict[str, Any], tmp_path: Path, mark: Path
) -> None:
    (tmp_path / "recipe.yaml").write_text(json.dumps(named(world, "merge")))
    experiment = reading.read(tmp_path / "recipe.yaml", allow_code=True)
    assert experiment.programs == ["merge: beside_it:First"]
    assert reading.override(experiment, ["seeds=[1]"]).seeds == [1]
    with pytest.raises(RecipeError, match="merge: 'beside_it:First' would run"):
        reading.parse(reading.dump(experiment))

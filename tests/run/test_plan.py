"""Estimates of memory, disk and time: from a configuration alone, and beside what tiny runs really write."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from spunge.recipe import reading
from spunge.recipe.schema import Experiment
from spunge.run import pipeline
from spunge.run.foretell import plan as planning
from spunge.run.store import Store
from spunge.weights.language_model import LanguageModel
from spunge.weights.shape import shape_of

LLAMA = {
    "7B": ({"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "heads": (32, 32)}, 6738415616),
    "13B": ({"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "heads": (40, 40)}, 13015864320),
    "70B": ({"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "heads": (64, 8)}, 68976648192),
}
LORA = {"rank": 8, "target_modules": "all-linear"}


def config_only(directory: Path, name: str, tokenizer: Path) -> Path:
    """Writes the configuration of a Llama 2 model beside the tokenizer of another, and no weights."""
    settings, _ = LLAMA[name]
    directory.mkdir(exist_ok=True)
    for file in tokenizer.glob("*token*"):
        shutil.copy(file, directory)
    heads, cached = settings["heads"]
    config = {
        **{key: value for key, value in settings.items() if key != "heads"},
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16", "vocab_size": 32000,
        "num_attention_heads": heads, "num_key_value_heads": cached, "tie_word_embeddings": False,
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def forecast(world: dict[str, Any], tmp_path: Path, *, memory: float = 80e9, **changes: Any) -> dict[str, dict]:
    steps = planning.forecast(
        Experiment.model_validate({**world, **changes}), out=tmp_path / "runs", memory=int(memory)
    ).steps
    return {f"{step['stage']} {step['name']}": step for step in steps}


@pytest.mark.parametrize("name", LLAMA)
def test_rmu_on_large_models_from_the_configuration_alone(
    world: dict[str, Any], tiny_model: Path, tmp_path: Path, name: str
) -> None:
    model = config_only(tmp_path / "big", name, tiny_model)
    known = shape_of(LanguageModel(id=str(model)))
    assert known.parameters == LLAMA[name][1]
    rmu = {**world["unlearn"], "layer": 7}
    steps = forecast(world, tmp_path, model={"id": str(model)}, unlearn=rmu, controls=["joint"])
    settings = LLAMA[name][0]
    changed = 3 * settings["hidden_size"] * settings["intermediate_size"]
    subset = steps["unlearn subset:a"]
    assert subset["disk"] == steps["merge spunge"]["disk"] == 4 * changed
    # Eight layers and the embeddings in bfloat16; gradient, master and two moments of three matrices.
    layer = (known.parameters - 2 * 32000 * known.width) / settings["num_hidden_layers"]
    weights = 2 * (8 * layer + 32000 * known.width)
    assert weights + 16 * changed < subset["memory"] < 1.3 * (weights + 20 * changed)
    assert subset["advice"] is None
    evaluation = steps["evaluate base on hazards"]
    assert 2 * known.parameters < evaluation["memory"] < 2.2 * known.parameters
    assert (evaluation["advice"] is None) == (name != "70B")
    if name == "70B":
        assert "choose a larger device" in evaluation["advice"]
    assert subset["seconds"] > 0


def test_what_does_not_fit_is_told_with_what_to_change(world: dict[str, Any], tiny_model: Path, tmp_path: Path) -> None:
    model = {"id": str(config_only(tmp_path / "big", "7B", tiny_model))}
    whole = {"method": "gradient_difference", "lora": None, "batch_size": 64}
    steps = forecast(world, tmp_path, model=model, unlearn=whole, controls=[])
    assert "unlearn.lora={rank: 16}" in steps["unlearn subset:a"]["advice"]
    assert "would make it fit" in steps["unlearn subset:a"]["advice"]
    assert steps["unlearn subset:a"]["disk"] == 4 * LLAMA["7B"][1]
    lora = forecast(world, tmp_path, model=model, unlearn={**whole, "lora": LORA, "batch_size": 1}, controls=[])
    assert lora["unlearn subset:a"]["advice"] is None
    tight = forecast(world, tmp_path, model=model, unlearn={**whole, "lora": LORA}, controls=[], memory=14.5e9)
    assert tight["unlearn subset:a"]["advice"].startswith("does not fit; unlearn.batch_size=1")
    none = forecast(world, tmp_path, model=model, unlearn={**whole, "lora": LORA}, controls=[], memory=1e9)
    assert "choose a larger device" in none["unlearn subset:a"]["advice"]


@pytest.mark.parametrize("method", ["rmu", "lora", "default_lora", "weights"])
def test_the_disk_that_is_foretold_is_the_disk_that_is_used(world: dict[str, Any], tmp_path: Path, method: str) -> None:
    if method != "rmu":
        lora = {"lora": LORA, "default_lora": {"rank": 2}, "weights": None}[method]
        world["unlearn"] = {"method": "gradient_difference", "lora": lora, "max_steps": 1}
    foretold = forecast(world, tmp_path, controls=[])
    run = pipeline.run(Experiment.model_validate({**world, "controls": []}), out=tmp_path / "runs")
    for stage in json.loads((run / "manifest.json").read_text())["stages"]:
        if stage["stage"] in ("unlearn", "merge"):
            file = run / stage["path"] / "task_vector.safetensors"
            expected = foretold[f"{stage['stage']} {stage['name']}"]["disk"]
            header = int.from_bytes(file.read_bytes()[:8], "little") + 8
            assert file.stat().st_size - header == expected


def test_as_many_steps_as_all_subsets_together_take_as_long(world: dict[str, Any], tmp_path: Path) -> None:
    steps = forecast(world, tmp_path, controls=["joint", "joint_equal_steps", "sequential"])
    together = sum(steps[f"unlearn subset:{name}"]["seconds"] for name in "ab")
    publishing = steps["split ByColumn"]["seconds"]  # once, not for each subset
    assert steps["unlearn joint_equal_steps"]["seconds"] == pytest.approx(together - publishing)
    assert steps["unlearn sequential"]["seconds"] == pytest.approx(together - publishing)


def test_what_is_there_already_takes_nothing(world: dict[str, Any], tmp_path: Path) -> None:
    pipeline.run(Experiment.model_validate({**world, "controls": []}), out=tmp_path / "runs")
    assert {step["memory"] for step in forecast(world, tmp_path, controls=[]).values()} == {None}


def test_the_critical_path_is_the_longest_task_of_every_round(world: dict[str, Any], tmp_path: Path) -> None:
    plan = planning.forecast(Experiment.model_validate(world), out=tmp_path / "runs")
    path, rounds = plan.critical_path, dict(zip((step["key"] for step in plan.steps), plan.rounds, strict=True))
    assert next(step["stage"] for step in path if step["stage"] != "split") == "unlearn"
    assert path[-1]["stage"] == "evaluate"
    assert [rounds[step["key"]] for step in path] == sorted({rounds[step["key"]] for step in path})
    for step in path:
        rivals = [each["seconds"] or 0 for each in plan.steps if rounds[each["key"]] == rounds[step["key"]]]
        assert step["seconds"] == max(rivals)


def test_a_plan_reads_every_manifest_once(
    world: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.run(Experiment.model_validate({**world, "controls": []}), out=tmp_path / "runs")
    asked: list[str] = []
    stored_inputs = Store.stored_inputs
    monkeypatch.setattr(Store, "stored_inputs", lambda store, stage: asked.append(stage) or stored_inputs(store, stage))
    other = Experiment.model_validate({**world, "controls": [], "unlearn": {**world["unlearn"], "alpha": 3.0}})
    steps = planning.plan(other, out=tmp_path / "runs")
    assert sorted(asked) == ["evaluate", "merge", "unlearn"]
    assert any("unlearner.alpha" in why for step in steps if step["stage"] == "unlearn" for why in step["why"])


def test_models_that_read_what_was_written_stay_beside_the_base_model(tmp_path: Path) -> None:
    experiment = reading.read("lab-toxicity", ["controls=[]"])
    steps = planning.forecast(experiment, out=tmp_path / "runs", memory=10**10).steps
    base, judge = (shape_of(LanguageModel(id=f"lab:{name}")) for name in ("model", "judge"))
    weights = base.parameters * base.bytes + judge.parameters * judge.bytes
    judged = [number for number, step in enumerate(steps) if step["stage"] == "judge"]
    assert all(steps[number]["memory"] > weights for number in judged)
    asked = [step for step in steps[judged[-1] :] if step["name"].endswith("on facts")]
    assert asked
    assert all(step["memory"] > weights for step in asked)

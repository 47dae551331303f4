"""A run's parts by name: what is merged, asked, audited or exported by it is what the run asked, bit for bit."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_world
from torch import Tensor

import spunge
from spunge.cli import beginnings, steps
from spunge.errors import ArtifactError, RecipeError
from spunge.files import locate
from spunge.recipe.schema import Experiment
from spunge.run import parts, pipeline

LORA = {"method": "npo", "learning_rate": 1e-2, "epochs": 1, "batch_size": 8, "lora": {"rank": 2}}


def ran(directory: Path, model: Path, **changes: Any) -> Path:
    experiment = Experiment.model_validate({**tiny_world(directory, model), "controls": ["joint"], **changes})
    return pipeline.run(experiment, out=directory / "runs")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A run of two seeds, whose models are asked at another λ than the one they were unlearned at."""
    return ran(tmp_path_factory.mktemp("parts"), tiny_model, seeds=[0, 1], damage={"headline": 0.001, "length": 16})


@pytest.fixture(scope="module")
def of_factors(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A run whose subsets' task vectors are LoRA factors."""
    return ran(tmp_path_factory.mktemp("factors"), tiny_model, unlearn=LORA)


def noted(run: Path, name: str, seed: int = 0) -> dict[str, Any]:
    variants = json.loads((run / "manifest.json").read_text())["variants"]
    return next(one for one in variants if (one["name"], one["seed"]) == (name, seed))


def weights(directory: Path) -> dict[str, Tensor]:
    """As plain transformers reads them."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory).state_dict()


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(torch.arange(4, 40)[None]).logits


def answers(run: Path | spunge.OpenedRun, variant: str, seed: int = 0) -> list[float]:
    opened = run if isinstance(run, spunge.OpenedRun) else spunge.open(run)
    items = opened.items
    return items.filter((items["variant"] == variant) & (items["seed"] == seed))["value"].to_list()


@pytest.mark.parametrize(
    ("name", "variant", "seed"),
    [("subset:a", "subset:a", 0), ("joint", "joint", 0), ("merged", "spunge", 0), ("joint@1", "joint", 1)],
)
def test_a_part_is_what_the_run_asked(
    run: Path, tiny_model: Path, tmp_path: Path, name: str, variant: str, seed: int
) -> None:
    scale = noted(run, variant, seed)["scale"]
    assert variant.startswith("subset:") or scale != 1.0
    vector = spunge.load_vector(f"{run}:{name}")
    delta = spunge.TaskVector.load(run / noted(run, variant, seed)["task_vector"])
    assert all(torch.equal(vector[key], delta.scaled(scale)[key]) for key in delta)

    exported = spunge.export(f"{run}:{name}", tmp_path / "exported")
    before, after = weights(tiny_model), weights(exported)
    assert {key for key in before if not torch.equal(before[key], after[key])} == set(delta)
    for key in delta:
        change = delta.read(key, 0, before[key].numel()).reshape(before[key].shape)
        assert torch.equal(after[key], before[key] + change * (scale * delta.scale))

    suite = Experiment.model_validate(tiny_world(tmp_path, tiny_model)).evaluate
    asked = answers(spunge.evaluate(tiny_model, f"{run}:{name}", suite), "unlearned")
    assert asked == answers(run, variant, seed)
    assert asked == answers(spunge.evaluate(exported, None, suite), "base")


@pytest.mark.parametrize("variant", ["subset:a", "merged"])
def test_an_adapter_is_loaded_by_plain_peft(of_factors: Path, tiny_model: Path, tmp_path: Path, variant: str) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    steps.export(tmp_path / "adapter", str(of_factors), variant=variant, form="adapter", quiet=True)
    steps.export(tmp_path / "whole", f"{of_factors}:{variant}", quiet=True)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    before = logits(base)
    adapted = logits(PeftModel.from_pretrained(base, tmp_path / "adapter"))
    whole = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "whole"))
    torch.testing.assert_close(adapted, whole, rtol=1e-4, atol=1e-5)
    assert (adapted - before).abs().max() > 1e-2
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert ("not its merged model" in card) == (variant != "merged")
    assert card.startswith("---\nlibrary_name: peft\n")


def test_an_adapter_of_the_embedded_model_names_a_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from peft import AutoPeftModelForCausalLM

    name = "model.layers.0.mlp.down_proj.weight"
    change = spunge.TaskVector({name: torch.ones(64, 192)})
    change.save(tmp_path / "tv")
    steps.export(tmp_path / "adapter", model="lab:model", task_vector=str(tmp_path / "tv"), form="adapter", rank=1)
    adapted = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").merge_and_unload().state_dict()
    before = spunge.load("lab:model").checkpoint().read(name)
    torch.testing.assert_close(adapted[name], before + 1, rtol=1e-4, atol=1e-5)
    shown = capsys.readouterr().out.splitlines()[1].strip()
    assert shown == (
        f"PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({str(locate('lab:model'))!r}), "
        f"{str(tmp_path / 'adapter')!r})"
    )


def test_an_exported_task_vector_is_taken_where_the_part_is(run: Path, tiny_model: Path, tmp_path: Path) -> None:
    spunge.export(run, tmp_path / "tv", variant="joint", form="task-vector")
    vector, part = spunge.load_vector(tmp_path / "tv"), spunge.load_vector(f"{run}:joint")
    assert all(torch.equal(vector[name], part[name]) for name in part)
    assert vector.scale == part.scale
    assert vector.provenance["base"] == part.provenance["base"]
    assert "joint unlearning" in (tmp_path / "tv" / "README.md").read_text()


def test_an_audit_takes_parts(run: Path, tiny_model: Path, tmp_path: Path) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_text(json.dumps(tiny_world(tmp_path, tiny_model)["evaluate"]))
    steps.audit(
        str(tiny_model), [f"{run}:joint", f"{run}:merged"], str(suite), tmp_path / "audit", attacks="none", quiet=True
    )
    for variant in ("joint", "spunge"):
        assert answers(tmp_path / "audit", variant) == answers(run, variant)


def test_a_chat_answers_as_the_base_and_as_the_part(
    run: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    exported = spunge.export(f"{run}:joint", tmp_path / "joint")
    monkeypatch.setattr("sys.stdin", io.StringIO("a1 b2 c3\n\nd4\n"))
    beginnings.chat(f"{run}:joint", tokens=6, device="cpu")
    said = capsys.readouterr().out.splitlines()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    models = {"base model": tiny_model, "joint": exported}
    for number, prompt in enumerate(("a1 b2 c3", "d4")):
        assert said[4 * number] == f"> {prompt}"
        for line, (name, directory) in enumerate(models.items(), 1):
            ids = tokenizer(prompt, return_tensors="pt")
            model: Any = AutoModelForCausalLM.from_pretrained(directory)
            written = model.generate(**ids, max_new_tokens=6, do_sample=False)
            told = tokenizer.decode(written[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
            assert said[4 * number + line] == f"{name}: {told}"


def test_a_run_keeps_a_log_of_what_it_did_and_of_how_it_ended(
    world: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = Experiment.model_validate({**world, "controls": []})
    with monkeypatch.context() as broken:
        broken.setattr(pipeline, "write_items", lambda *_: {}["a fault"])
        with pytest.raises(KeyError):
            pipeline.run(experiment, out=tmp_path / "runs")
    log = (tmp_path / "runs" / "tiny" / "log.txt").read_text()
    assert "computed unlearn subset:a, seed 0, " in log
    assert "Traceback" in log
    assert log.splitlines()[-1] == "KeyError: 'a fault'"
    pipeline.run(experiment, out=tmp_path / "runs")
    again = (tmp_path / "runs" / "tiny" / "log.txt").read_text()
    assert again.startswith(log)
    assert "reused unlearn subset:a, seed 0" in again[len(log) :]
    assert again.endswith(" done\n")


def test_what_a_run_has_not_is_told_with_what_it_has(run: Path, tiny_model: Path, tmp_path: Path) -> None:
    there = "there are joint, subset:a, subset:b, spunge"
    with pytest.raises(ArtifactError, match=f"no part is named 'subset:c'; {there}"):
        parts.find(f"{run}:subset:c")
    with pytest.raises(ArtifactError, match="base model is what task vectors are added to"):
        parts.find(f"{run}:base")
    with pytest.raises(ArtifactError, match="no joint of seed 7; there are 0, 1"):
        parts.find(f"{run}:joint@7")
    with pytest.raises(RecipeError, match=f"a run: name a part of it \\({run}:joint"):
        parts.find(run)
    with pytest.raises(ArtifactError, match="not a run"):
        parts.find(f"{tmp_path}:joint")
    with pytest.raises(ArtifactError, match="a part of a run such as"):
        spunge.evaluate(tiny_model, "runs/nowhere:joint", tiny_world(tmp_path, tiny_model)["evaluate"])
    with pytest.raises(RecipeError, match="--base: name the base model"):
        steps.merge(tmp_path / "new", ["somewhere"], quiet=True)
    with pytest.raises(RecipeError, match="leave out --variant"):
        steps.export(tmp_path / "new", f"{run}:joint", variant="joint", quiet=True)
    assert not (tmp_path / "new").exists()


def test_a_file_is_a_path_whatever_it_is_called(run: Path, tmp_path: Path) -> None:
    odd = tmp_path / f"{run.name}:joint"
    odd.mkdir()
    assert parts.find(odd) == odd
    assert parts.find("lab:model") == "lab:model"

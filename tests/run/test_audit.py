"""An audit of models from anywhere: a checkpoint, an adapter's task vector and an oracle, on one page, and again."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file

from spunge import report
from spunge.asking.divergence import kl_per_token, predict, whole_texts
from spunge.cli.commands import main
from spunge.errors import SpungeError
from spunge.evaluators.attacks import Membership, Quantization, Relearning
from spunge.recipe.schema import Experiment
from spunge.report.opened import OpenedRun
from spunge.rows.sources import Source, load_corpus
from spunge.run.audit import Audit, audit
from spunge.weights.checkpoint import export
from spunge.weights.language_model import LanguageModel
from spunge.weights.task_vector import TaskVector


@pytest.fixture
def what(world: dict[str, Any], tmp_path: Path) -> Audit:
    """The tiny world's base, with a checkpoint and a task vector of it."""
    [hazards] = world["evaluate"]
    read = Experiment.model_validate({**world, "evaluate": [hazards, {**hazards, "suite": "kept", "goal": "retain"}]})
    torch.manual_seed(0)
    checkpoint = read.model.checkpoint()
    name = next(name for name in sorted(checkpoint.tensors) if name.endswith("down_proj.weight"))
    for directory in ("checkpoint", "vector"):
        change = TaskVector({name: 0.5 * torch.randn(checkpoint.tensors[name].shape)})
        if directory == "vector":
            change.save(tmp_path / directory)
        else:
            export(checkpoint.directory, change, tmp_path / directory)
    assert read.retain is not None
    return Audit(
        read.model, [str(tmp_path / "checkpoint"), str(tmp_path / "vector")], read.evaluate,
        [Quantization, Relearning], forget=read.forget.sources, retain=read.retain.sources, by="domain",
    )  # fmt: skip


def test_models_from_anywhere_stand_side_by_side_and_are_asked_once(what: Audit, tmp_path: Path) -> None:
    told: list[str] = []
    where = audit(what, tmp_path / "audit", listener=lambda kind, content: told.append(kind))
    assert told.count("planned") == 1
    results = json.loads((where / "report" / "results.json").read_text())
    kinds = {row["name"]: row["kind"] for row in results["variants"]}
    assert kinds == {"base": "base", "checkpoint": "audited", "vector": "audited"}
    suites = {row["suite"] for row in results["attacks"]}
    assert suites == {"hazards: quantization", "hazards: relearning", "hazards: benign text"}
    assert {row["attribute_value"] for row in results["attacks"]} == {None, "a", "b"}
    page = (where / "report" / "index.html").read_text()
    assert "The models side by side" in page
    assert "What the attacks do to a model that forgot nothing" in page  # a few items' chance has no shares to draw

    # The damage is the divergence of the weights that were added, on the retain rows.
    base = what.base.load()
    changed = LanguageModel(id=str(tmp_path / "checkpoint")).load()
    rows = load_corpus(what.retain).texts
    texts = whole_texts(what.base.load_tokenizer(), random.Random(0).sample(rows, len(rows)), tokens=256, length=128)
    expected = kl_per_token(predict(base, texts, tmp_path), changed)
    noted = {row["name"]: row.get("kl") for row in results["variants"]}
    assert noted["checkpoint"] == pytest.approx(expected, rel=1e-4)
    assert noted["base"] is None

    again: list[Any] = []
    audit(what, where, listener=lambda kind, content: again.append((kind, content)))
    assert {content["status"] for kind, content in again if kind == "finished"} == {"reused"}
    assert any("checkpoint" in line.text for line in report.ending(where / "report"))
    opened = OpenedRun.read(where)
    assert [*opened.verdict.sentences] == report.summary(where / "report")["sentences"]
    assert all(name in " ".join(opened.verdict.sentences) for name in ("checkpoint", "vector"))


def test_what_was_read_is_told_from_what_never_was(what: Audit, tmp_path: Path) -> None:
    unseen = tmp_path / "unseen.jsonl"
    unseen.write_text("".join(json.dumps({"text": f"{letter} was never here ."}) + "\n" for letter in "uvwxyz"))
    what = replace(what, models=what.models[:1], attacks=[Membership], unseen=[Source(path=str(unseen))])
    where = audit(what, tmp_path / "audit")
    rows = json.loads((where / "report" / "results.json").read_text())["membership"]
    assert {row["score"] for row in rows} == {"loss", "zlib", "min_k", "min_k_plus_plus"}
    assert {(row["variant"], row["attribute_value"]) for row in rows} == {
        (variant, value) for variant in ("base", "checkpoint") for value in (None, "a", "b")
    }
    assert all(0 <= row["auc_low"] <= row["auc"] <= row["auc_high"] <= 1 for row in rows)
    assert "Whether one can tell what was read" in (where / "report" / "index.html").read_text()


def as_on_the_hub(cache: Path, name: str, directory: Path) -> str:
    """Lays a directory out as the hub's client keeps what it fetched, and returns its id."""
    model = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(directory, model / "snapshots" / ("1" * 40))
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("1" * 40)
    return name


def test_adapters_and_hub_ids_are_audited_as_directories_are(
    what: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import peft

    torch.manual_seed(0)
    lora = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["down_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(what.base.load(), lora)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    export: Any = adapted.merge_and_unload()  # pyright: ignore[reportCallIssue]: PEFT gives an attribute of the model
    export.save_pretrained(tmp_path / "merged")
    what.base.load_tokenizer().save_pretrained(tmp_path / "merged")
    cache = tmp_path / "cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    hub = [
        as_on_the_hub(cache, "someone/adapter", tmp_path / "adapter"),
        as_on_the_hub(cache, "someone/merged", tmp_path / "merged"),
    ]
    base = as_on_the_hub(cache, "someone/base", what.base.directory())
    models = [str(tmp_path / "adapter"), str(tmp_path / "merged"), *hub]
    where = audit(replace(what, models=models, attacks=[Quantization]), tmp_path / "audit")
    results = json.loads((where / "report" / "results.json").read_text())
    told = {
        row["variant"]: row["value"]
        for row in results["scores"]
        if row["metric"] == "p_correct" and row["suite"] == "hazards" and row["attribute"] is None
    }
    assert set(told) == {"base", *models}  # two names stand twice, so each goes by its whole one
    assert len({round(told[model], 5) for model in models}) == 1
    assert told[models[0]] != pytest.approx(told["base"], abs=1e-4)

    again = audit(
        replace(what, base=LanguageModel(id=base), models=hub, attacks=[Quantization]), tmp_path / "audit of the hub's"
    )
    results = json.loads((again / "report" / "results.json").read_text())
    assert {row["name"] for row in results["variants"]} == {"base", "adapter", "merged"}


def test_an_oracle_gives_the_scale_and_is_no_rival(what: Audit, tmp_path: Path) -> None:
    with_one = replace(what, models=what.models[:1], oracle=what.models[1], attacks=[Quantization])
    where = audit(with_one, tmp_path / "audit")
    results = json.loads((where / "report" / "results.json").read_text())
    assert {row["name"]: row["kind"] for row in results["variants"]}["oracle"] == "oracle"
    assert "oracle" in (where / "report" / "index.html").read_text()


def test_what_does_not_fit_is_said_in_a_line_before_anything_is_written(what: Audit, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    weights = load_file(tmp_path / "checkpoint" / "model.safetensors")
    save_file({name: weight[:3] for name, weight in weights.items()}, other / "model.safetensors", {"format": "pt"})
    (other / "config.json").write_text((tmp_path / "checkpoint" / "config.json").read_text())
    for models, suites in (([str(other)], what.suites), ([str(tmp_path / "none")], what.suites), (what.models, [])):
        with pytest.raises(SpungeError):
            audit(replace(what, models=models, suites=suites), tmp_path / "audit")
        assert not (tmp_path / "audit").exists()


def test_the_command_takes_a_suite_of_yaml_and_names_of_attacks(
    what: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = [{**one.model_dump(mode="json", exclude_unset=True), "method": "multiple_choice"} for one in what.suites]
    with (tmp_path / "suite.yaml").open("w") as stream:
        YAML().dump(suite, stream)
    words = ["spunge", "audit", what.base.id, *what.models, "--suite", str(tmp_path / "suite.yaml")]
    words += ["--out", str(tmp_path / "audit"), "--attacks", "quantization,noise", "--by", "domain"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert "checkpoint" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", [*words, "--attacks", "quantisation"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "--attacks: 'quantisation' is no attack; did you mean 'quantization'?" in capsys.readouterr().err

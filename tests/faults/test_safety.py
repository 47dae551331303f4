"""Files are not trusted, and secrets stay where they are. Shard names, pickles, YAML bombs and pages are tested with
the modules that read or write them."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from attempts import attempt
from pydantic import ValidationError

from spunge.errors import ModelError, redacted
from spunge.weights.language_model import LanguageModel

TOKEN = "hf_" + "aB3" * 11


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"model.id={TOKEN}", "model.id=…"),
        ("https://user:pass@host/x", "https://…@host/x"),
        ("optimizer=hf_adamw", "optimizer=hf_adamw"),
        ("a@b.c and https://host/@x", "a@b.c and https://host/@x"),
        ("the value of swordfish-8", "the value of …"),
    ],
)
def test_redaction(monkeypatch: pytest.MonkeyPatch, text: str, shown: str) -> None:
    monkeypatch.setenv("SOME_API_KEY", "swordfish-8")
    monkeypatch.setenv("EMPTY_TOKEN", "")
    assert redacted(text) == shown


def test_tokens_are_in_no_file_and_no_message(
    world: dict[str, Any], write_recipe: Callable[[dict[str, Any]], Path], tmp_path: Path
) -> None:
    write_recipe({**world, "controls": []})
    done = attempt(("run", "recipe.yaml", f"description=mine {TOKEN} https://me:secret1@host"), tmp_path)
    assert done.code == 0, done.errors
    failed = attempt(("run", "recipe.yaml", f"model.id=/none/{TOKEN}"), tmp_path)
    assert failed.code == 2
    assert "no such model directory" in failed.errors
    written = [file for file in (tmp_path / "runs").rglob("*") if file.is_file()]
    assert len(written) > 20
    for text in (failed.errors, *(file.read_bytes().decode(errors="replace") for file in written)):
        assert TOKEN not in text
        assert "secret1" not in text


@dataclass
class Umask:
    """Runs an attempt under another umask."""

    mask: int

    def __call__(self) -> None:
        os.umask(self.mask)


@pytest.mark.parametrize("mask", [0o077, 0o022])
def test_files_are_as_open_as_the_umask_says(
    world: dict[str, Any], write_recipe: Callable[[dict[str, Any]], Path], tmp_path: Path, mask: int
) -> None:
    write_recipe({**world, "controls": []})
    assert attempt(("run", "recipe.yaml"), tmp_path, Umask(mask)).code == 0
    vector = next((tmp_path / "runs/store/unlearn").iterdir())
    words = ("export", "--model", world["model"]["id"], "--task-vector", vector, "--out", "exported")
    assert attempt(words, tmp_path, Umask(mask)).code == 0
    for root in (tmp_path / "runs", tmp_path / "exported"):
        for path in (root, *root.rglob("*")):
            wanted = (0o777 if path.is_dir() else 0o666) & ~mask
            if path.name != ".lock":
                assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_a_models_own_code_does_not_run(tiny_model: Path, tmp_path: Path) -> None:
    directory, ran = tmp_path / "model", tmp_path / "ran"
    directory.mkdir()
    for file in tiny_model.iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    config = json.loads((directory / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "evil.py").write_text(f"open({str(ran)!r}, 'w')\n")
    handle = LanguageModel(id=str(directory))
    with pytest.raises(ModelError, match=r"no configuration that can be read: .*custom code"):
        handle.load()
    with pytest.raises(ModelError, match=r"custom code"):
        handle.load_tokenizer()
    assert not ran.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000: no model has so many"),
        ({"text_config": {"num_hidden_layers": 10**9}}, "num_hidden_layers is 1000000000: no model has so many"),
        ({"num_attention_heads": 0}, "no configuration that can be read"),
        ({"hidden_size": "x"}, "no configuration that can be read"),
        ({"vocab_size": 10**12}, "cannot be loaded as a causal language model"),
    ],
)
def test_a_configuration_that_lies_is_one_line(
    tiny_model: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ModelError, match=message) as raised:
        LanguageModel(id=str(model)).load()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "change",
    [
        {"lora_alpha": float("inf")}, {"lora_alpha": float("nan")}, {"r": 10**400}, {"rank_pattern": {"(a+)+$": 2}},
        {"alpha_pattern": {".*.*.*.*.*x": 2}}, {"alpha_pattern": {"(": 2}}, {"rank_pattern": [1]}, {"r": True},
        {"revision": []}, {"base_model_name_or_path": {}},
    ],
)  # fmt: skip
def test_an_adapters_configuration_that_lies_is_one_line(
    tiny_model: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    import torch

    from spunge.errors import ArtifactError
    from spunge.weights import adapter
    from spunge.weights.task_vector import LowRank, TaskVector

    entry = LowRank(torch.ones(2, 24), torch.ones(16, 2), 0.1)
    directory = adapter.save(TaskVector({"model.layers.1.mlp.down_proj.weight": entry}), tmp_path / "a", base="m")
    (directory / "spunge.json").unlink()
    config = json.loads((directory / "adapter_config.json").read_text())
    (directory / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(ArtifactError, match=r"adapter_config\.json") as raised:
        adapter.read(directory, LanguageModel(id=str(tiny_model)).checkpoint())
    assert "\n" not in str(raised.value)


def test_remote_code_needs_a_revision() -> None:
    with pytest.raises(ValidationError, match="say which revision"):
        LanguageModel(id="someone/model", trust_remote_code=True)
    assert LanguageModel(id="someone/model", trust_remote_code=True, revision="abc").trust_remote_code


class Evil:
    """Runs code when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_a_checkpoint_that_is_a_pickle_of_something_else_is_not_unpickled(tmp_path: Path) -> None:
    import torch

    from spunge.interfaces import Work
    from spunge.training.checkpointing import CHECKPOINT, Record
    from spunge.weights.language_model import Resident

    torch.save({"key": Evil(tmp_path / "ran")}, tmp_path / CHECKPOINT)
    with pytest.warns(RuntimeWarning, match="damaged, so the run begins anew"):
        assert Record(Work(Resident(), tmp_path, tmp_path), "key").resume() is None
    assert not (tmp_path / "ran").exists()

"""A FIFO or an endless device wherever a file is read: one line that names it, and nobody waits for it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from attempts import attempt, start, wait
from conftest import tiny_world
from safetensors.torch import save_file

RUN = ("run", "recipe.yaml", "--quiet")
EXPORT = ("export", "--model", "model", "--task-vector", "vector", "--out", "exported")
REPORT = ("report", "runs/tiny")
ADAPTER = "adapter/adapter_model.safetensors"
FACTORS = (("A", (2, 1)), ("B", (1, 2)))  # of whatever shape: nobody gets to read them
READ = [
    ("recipe.yaml", RUN),
    ("forget.jsonl", RUN),
    ("items.jsonl", RUN),
    ("model/config.json", RUN),
    ("model/tokenizer.json", RUN),
    ("model/model.safetensors", RUN),
    ("model/model.safetensors.index.json", RUN),
    ("runs/store/.lock", RUN),
    ("runs/tiny/.lock", RUN),
    ("model/config.json", EXPORT),
    ("model/model.safetensors", EXPORT),
    ("vector/manifest.json", EXPORT),
    ("vector/task_vector.safetensors", EXPORT),
    ("adapter/adapter_config.json", (*EXPORT[:4], "adapter", *EXPORT[5:])),
    ("adapter/adapter_model.safetensors", (*EXPORT[:4], "adapter", *EXPORT[5:])),
    ("runs/tiny/manifest.json", REPORT),
    ("runs/tiny/recipe.yaml", REPORT),
    ("runs/tiny/items.parquet", REPORT),
    ("runs/tiny/journal.jsonl", REPORT),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A directory with a model, a recipe, what a run of it leaves, a task vector and an adapter."""
    directory = tmp_path_factory.mktemp("finished")
    shutil.copytree(tiny_model, directory / "model")
    world = {**tiny_world(directory, Path("model")), "controls": []}
    world["forget"]["sources"] = [{"path": "forget.jsonl"}]
    world["evaluate"][0]["sources"] = [{"path": "items.jsonl"}]
    (directory / "recipe.yaml").write_text(json.dumps(world))
    ended = attempt(RUN, directory)
    assert ended.code == 0, ended.errors
    shutil.copytree(next((directory / "runs/store/unlearn").glob("[!.]*")), directory / "vector")
    factors = {f"model.layers.0.mlp.down_proj.lora_{side}.weight": torch.zeros(shape) for side, shape in FACTORS}
    (directory / "adapter").mkdir()
    save_file({f"base_model.model.{name}": part for name, part in factors.items()}, directory / ADAPTER)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["down_proj"]}
    (directory / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize(("file", "words"), READ)
def test_a_fifo_is_refused_by_name_and_not_waited_for(finished: Path, file: str, words: tuple[str, ...]) -> None:
    place, aside = finished / file, finished / f"{file}.aside"
    if place.exists():
        place.rename(aside)
    os.mkfifo(place)
    try:
        ended = wait(start(words, finished), 60)
    finally:
        place.unlink()
        if aside.exists():
            aside.rename(place)
    assert ended.code == 2, ended.errors
    assert "Traceback" not in ended.errors
    assert f"{file}: a FIFO, a socket or a device" in ended.errors.splitlines()[-1]


@pytest.mark.parametrize(("file", "words"), [READ[0], READ[1], READ[3], READ[11]])
def test_a_device_without_an_end_is_no_file_either(finished: Path, file: str, words: tuple[str, ...]) -> None:
    place, aside = finished / file, finished / f"{file}.aside"
    place.rename(aside)
    place.symlink_to("/dev/zero")
    try:
        ended = wait(start(words, finished), 60)
    finally:
        place.unlink()
        aside.rename(place)
    assert ended.code == 2, ended.errors
    assert f"{file}: a FIFO, a socket or a device" in ended.errors


@pytest.mark.parametrize("name", ["manifest.json", "task_vector.safetensors"])
def test_an_artifact_with_a_fifo_in_it_is_damaged_and_made_again(finished: Path, name: str) -> None:
    vector = next((finished / "runs/store/unlearn").glob("[!.]*"))
    content = (vector / name).read_bytes()
    (vector / name).unlink()
    os.mkfifo(vector / name)
    ended = wait(start(RUN, finished), 60)
    assert ended.code == 0, ended.errors
    assert f"{name} is damaged, so it is made again" in ended.errors
    if name != "manifest.json":  # that one notes how long it took
        assert (vector / name).read_bytes() == content

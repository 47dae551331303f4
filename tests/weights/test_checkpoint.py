"""Checkpoints as files: what is read, what an export copies and changes, what is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from spunge.errors import ArtifactError, IncompatibleTaskVectors, ModelError
from spunge.files import new_directory
from spunge.weights.checkpoint import Checkpoint, export
from spunge.weights.task_vector import TaskVector

NAME = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def change(tiny_model: Path) -> TaskVector:
    shape = Checkpoint.open(tiny_model).tensors[NAME].shape
    return TaskVector({NAME: torch.full(shape, 0.5)}, scale=-2.0)


@pytest.fixture
def sharded(tmp_path: Path, tiny_model: Path) -> Path:
    """The tiny model in two shards."""
    tensors = load_file(tiny_model / "model.safetensors")
    names = sorted(tensors)
    directory = tmp_path / "sharded"
    directory.mkdir()
    (directory / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    halves = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, half in halves.items():
        save_file({name: tensors[name] for name in half}, directory / file, metadata={"format": "pt"})
    weight_map = {name: file for file, half in halves.items() for name in half}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return directory


def test_tensors_are_read_as_safetensors_reads_them(tiny_model):
    checkpoint = Checkpoint.open(tiny_model)
    loaded = load_file(tiny_model / "model.safetensors")
    assert set(checkpoint.tensors) == set(loaded)
    for name, tensor in loaded.items():
        assert torch.equal(checkpoint.read(name), tensor)
        assert checkpoint.digest(name) == hashlib.sha256(tensor.numpy().tobytes()).hexdigest()


def test_an_export_is_loaded_by_transformers(tmp_path, tiny_model, change):
    import transformers

    export(tiny_model, change, tmp_path / "out", card="# changed")
    before = transformers.AutoModelForCausalLM.from_pretrained(tiny_model).state_dict()
    after = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    for name, weight in before.items():
        assert torch.equal(after[name], weight - 1.0 if name == NAME else weight), name
    assert (tmp_path / "out/README.md").read_text() == "# changed"
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (tiny_model / "tokenizer.json").read_bytes()


def test_an_export_keeps_the_shards(tmp_path, sharded, change):
    export(sharded, change, tmp_path / "out")
    files = {file.name for file in sharded.iterdir()}
    assert {file.name for file in (tmp_path / "out").iterdir()} == files | {"spunge.json"}
    differ = {name for name in files if (tmp_path / "out" / name).read_bytes() != (sharded / name).read_bytes()}
    assert len(differ) == 1
    assert Checkpoint.open(tmp_path / "out").read(NAME).equal(Checkpoint.open(sharded).read(NAME) - 1)


def test_only_weights_that_were_read_are_copied(tmp_path, sharded, change):
    for name in ("pytorch_model.bin", "model.gguf", "stray.safetensors", ".lock"):
        (sharded / name).write_bytes(b"x")
    (sharded / "chat_template.jinja").write_text("{{ x }}")
    export(sharded, change, tmp_path / "out")
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert "chat_template.jinja" in names
    assert not names & {"pytorch_model.bin", "model.gguf", "stray.safetensors", ".lock"}


def test_changed_equals_what_is_exported(tmp_path, tiny_model, change):
    export(tiny_model, change, tmp_path / "out")
    assert torch.equal(Checkpoint.open(tmp_path / "out").read(NAME), Checkpoint.open(tiny_model).changed(change, NAME))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (TaskVector({"nowhere": torch.ones(2)}), "no parameter 'nowhere'"),
        (
            TaskVector({NAME: torch.ones(2, 2)}),
            r"down_proj.weight: the base model's shape is .*'s \[2, 2\]",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, tiny_model, wrong, message):
    with pytest.raises(IncompatibleTaskVectors, match=message):
        export(tiny_model, wrong, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_exists_or_cannot_be_made_is_refused(tmp_path, tiny_model, change):
    with pytest.raises(ArtifactError, match="exists already"):
        export(tiny_model, change, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="cannot be written"):
        export(tiny_model, change, tmp_path / "file/out")


def test_an_interrupted_directory_is_gone(tmp_path):
    def interrupted() -> None:
        with new_directory(tmp_path / "out") as building:
            (building / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shard", ["../x.safetensors", "a/b.safetensors", "/etc/passwd", "..", ".", "", None, 3])
def test_shards_are_plain_file_names(sharded, shard):
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {NAME: shard}}))
    with pytest.raises(ModelError, match=r"not a plain file name|damaged index"):
        Checkpoint.open(sharded)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "model-2.safetensors").unlink(), r"no model-2\.safetensors"),
        (lambda d: (d / "model-2.safetensors").write_bytes(b""), "truncated"),
        (
            lambda d: (d / "model-2.safetensors").write_bytes(b"\x03" + b"\0" * 7 + b"no!"),
            "damaged .* header",
        ),
        (lambda d: (d / "model.safetensors.index.json").write_text("{"), "damaged index"),
        (lambda d: (d / "model.safetensors.index.json").write_text("[]"), "damaged index"),
        (
            lambda d: (d / "model.safetensors.index.json").write_text(
                json.dumps({"weight_map": {"ghost": "model-1.safetensors"}})
            ),
            "lists 'ghost'",
        ),
    ],
)
def test_damaged_checkpoints_are_refused(sharded, damage, message):
    damage(sharded)
    with pytest.raises(ModelError, match=message):
        Checkpoint.open(sharded)


def test_no_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match="no such model directory"):
        Checkpoint.open(tmp_path / "nowhere")
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ModelError, match="never pickles"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"dtype": "F32", "shape": [2], "data_offsets": [0, 80_000_000_000]},
            "takes 8 bytes, and its offsets",
        ),
        (
            {"dtype": "F32", "shape": [20_000_000_000], "data_offsets": [0, 80_000_000_000]},
            "truncated: tensor 'w'",
        ),
        ({"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}, "damaged header: tensor 'w'"),
        ({"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}, "impossible shape"),
        ({"dtype": "F32", "shape": [1.5], "data_offsets": [0, 6]}, "impossible shape"),
        ({"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}, "takes 12 bytes, and its offsets, 0 to 8, hold 8"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}, "tensors 'v' and 'w' overlap: damaged header"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "tensors 'v' and 'w' overlap: damaged header"),
        ({"dtype": "X9", "shape": [2], "data_offsets": [0, 8]}, "stored as X9"),
        ({"dtype": "F32", "shape": [2]}, "damaged safetensors header"),
        ({"dtype": "F32", "shape": "2", "data_offsets": [0, 8]}, "impossible shape"),
        ([], "damaged safetensors header"),
    ],
)
def test_headers_that_lie_are_refused(tmp_path, entry, message):
    header = json.dumps({"v": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "w": entry}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 8)
    with pytest.raises(ModelError, match=rf"model\.safetensors: .*{message}"):
        Checkpoint.open(tmp_path)

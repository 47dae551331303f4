"""The task vector in memory and on disk."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from spunge.errors import ArtifactError, IncompatibleTaskVectors
from spunge.weights.safetensors_files import StoredTensor
from spunge.weights.task_vector import LowRank, TaskVector


@pytest.fixture
def task_vector() -> TaskVector:
    generator = torch.Generator().manual_seed(0)
    entries = {
        "layers.0.w": torch.randn(3, 4, generator=generator),
        "layers.0.low.weight": LowRank(
            torch.randn(2, 5, generator=generator), torch.randn(6, 2, generator=generator), 1.5
        ),
        "layers.1.conv.weight": LowRank(
            torch.randn(2, 5, generator=generator), torch.randn(6, 2, generator=generator), 0.5, transposed=True
        ),
        "scalar": torch.tensor(2.0),
    }
    return TaskVector(entries, -0.25, {"method": "test", "seed": 3, "base": {"id": "m"}})


def test_what_is_saved_is_loaded(tmp_path, task_vector):
    task_vector.save(tmp_path / "tv")
    for read in (TaskVector.load, TaskVector.open):
        found = read(tmp_path / "tv")
        assert set(found) == set(task_vector)
        assert found.scale == -0.25
        assert found.provenance == task_vector.provenance
        for name in task_vector:
            assert found.shape(name) == task_vector.shape(name)
            assert torch.equal(found.delta(name), task_vector.delta(name))
        assert found.norm == pytest.approx(task_vector.norm)


def test_only_open_leaves_tensors_in_their_file(tmp_path, task_vector):
    task_vector.save(tmp_path / "tv")
    assert isinstance(TaskVector.open(tmp_path / "tv").entries["layers.0.w"], StoredTensor)
    assert isinstance(TaskVector.load(tmp_path / "tv").entries["layers.0.w"], torch.Tensor)


def test_the_directory_is_as_documented(tmp_path, task_vector):
    task_vector.save(tmp_path / "tv")
    tensors = load_file(tmp_path / "tv/task_vector.safetensors")
    assert torch.equal(tensors["layers.0.w"], task_vector.entries["layers.0.w"])
    assert tensors["base_model.model.layers.0.low.lora_A.weight"].shape == (2, 5)
    assert tensors["base_model.model.layers.0.low.lora_B.weight"].shape == (6, 2)
    manifest = json.loads((tmp_path / "tv/manifest.json").read_text())
    assert manifest["scale"] == -0.25
    assert manifest["method"] == "test"
    assert manifest["base"] == {"id": "m"}


def test_files_of_other_tools_are_read(tmp_path, task_vector):
    """Alignment and order of the header are the writer's own business."""
    task_vector.save(tmp_path / "tv")
    file = tmp_path / "tv/task_vector.safetensors"
    save_file(load_file(file), file, metadata={"format": "pt"})
    manifest = json.loads((tmp_path / "tv/manifest.json").read_text())
    del manifest["sealed"], manifest["checksum"]  # of the file that was there before
    (tmp_path / "tv/manifest.json").write_text(json.dumps(manifest))
    with pytest.warns(RuntimeWarning, match="no digests"):
        found = TaskVector.load(tmp_path / "tv")
    assert all(torch.equal(found.delta(name), task_vector.delta(name)) for name in task_vector)


def test_low_rank_is_its_product():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(3, 7, generator=generator), torch.randn(50, 3, generator=generator)
    straight, turned = LowRank(a, b, 2.0), LowRank(a, b, 2.0, transposed=True)
    assert torch.allclose(straight.dense(), 2 * b @ a)
    assert torch.allclose(turned.dense(), 2 * (b @ a).T)
    for entry in (straight, turned):
        flat = entry.dense().reshape(-1)
        for start, stop in ((0, 350), (0, 1), (13, 14), (5, 349), (100, 200), (349, 350)):
            assert torch.equal(entry.read(start, stop), flat[start:stop])
    assert torch.equal(straight.rows(17, 20), straight.dense()[17:20])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_apply_adds_in_float32_and_rounds_once(task_vector, dtype):
    weights = {name: torch.ones(task_vector.shape(name), dtype=dtype) for name in task_vector}
    changed = task_vector.apply({**weights, "other": torch.ones(1)})
    assert set(changed) == set(task_vector)
    for name, weight in changed.items():
        assert weight.dtype == dtype
        assert torch.equal(weight, (1 + task_vector.delta(name)).to(dtype))


def test_apply_refuses_another_model(task_vector):
    with pytest.raises(IncompatibleTaskVectors, match=r"no parameter 'layers\.0\.w'"):
        task_vector.apply({})
    wrong = {name: torch.ones(7, 7) for name in task_vector}
    with pytest.raises(IncompatibleTaskVectors, match=r"layers\.0\.w: the base model's shape is \[7, 7\]"):
        task_vector.apply(wrong)


def test_scaling_copies_nothing(task_vector):
    doubled = task_vector.scaled(2.0)
    assert doubled.scale == -0.5
    assert doubled.entries is task_vector.entries
    assert torch.equal(doubled.delta("layers.0.w"), task_vector.delta("layers.0.w") * 2)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "task_vector.safetensors").unlink(), "no task_vector.safetensors in it"),
        (lambda d: (d / "manifest.json").unlink(), r"no manifest\.json in it"),
        (lambda d: (d / "manifest.json").write_text("[]"), "not of a task vector in format 1"),
        (lambda d: (d / "manifest.json").write_text("{"), "damaged"),
        (
            lambda d: (d / "manifest.json").write_text('{"format": 1, "low_rank": {"x": {}}}'),
            "does not fit",
        ),
        (lambda d: (d / "task_vector.safetensors").write_bytes(b"\xff" * 7), "damaged"),
        (lambda d: (d / "task_vector.safetensors").write_bytes(b"\xff" * 99), "damaged"),
        (
            lambda d: (d / "task_vector.safetensors").write_bytes((d / "task_vector.safetensors").read_bytes()[:-1]),
            r"truncated: tensor .* ends at byte",
        ),
    ],
)
def test_damage_is_one_clear_error(tmp_path: Path, task_vector, damage, message):
    task_vector.save(tmp_path)
    damage(tmp_path)
    for read in (TaskVector.load, TaskVector.open):
        with pytest.raises(ArtifactError, match=message):
            read(tmp_path)


def test_an_unwritable_directory_is_one_clear_error(tmp_path, task_vector):
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="cannot be written"):
        task_vector.save(tmp_path / "file/tv")


def test_algebra_is_that_of_the_dense_deltas(task_vector):
    other = TaskVector({"scalar": torch.tensor(5.0), "only.here": torch.ones(2)}, 2.0)
    total = task_vector + other
    assert set(total) == {*task_vector, "only.here"}
    for name in total:
        parts = [each.delta(name) for each in (task_vector, other) if name in each]
        assert torch.equal(total[name], sum(parts[1:], parts[0]))
    assert total.provenance["base"] == {"id": "m", "tensors": {}}
    assert torch.equal((2 * task_vector)["scalar"], 2 * task_vector["scalar"])
    assert torch.equal((task_vector * 2)["scalar"], (task_vector + task_vector)["scalar"])
    assert torch.equal((-task_vector)["layers.0.w"], -task_vector["layers.0.w"])
    assert (task_vector - task_vector).norm == 0


def test_the_cosine_is_that_of_all_deltas_as_one(task_vector):
    generator = torch.Generator().manual_seed(1)
    other = TaskVector({name: torch.randn(task_vector.shape(name), generator=generator) for name in task_vector}, -3.0)
    flat = [torch.cat([each[name].double().reshape(-1) for name in task_vector]) for each in (task_vector, other)]
    assert task_vector.cosine(other) == pytest.approx(float(torch.cosine_similarity(*flat, dim=0)))
    assert task_vector.cosine(-task_vector) == pytest.approx(-1)
    assert math.isnan(task_vector.cosine(TaskVector({})))


def test_task_vectors_of_two_bases_are_neither_added_nor_compared(task_vector):
    foreign = TaskVector({"scalar": torch.tensor(1.0)}, 1.0, {"base": {"id": "another"}})
    wide = TaskVector({"scalar": torch.ones(3)})
    for other, message in ((foreign, "different base models"), (wide, "scalar: the base model's shape")):
        with pytest.raises(IncompatibleTaskVectors, match=message):
            _ = task_vector + other
        with pytest.raises(IncompatibleTaskVectors, match=message):
            task_vector.cosine(other)
    with pytest.raises(TypeError):
        _ = task_vector + 1

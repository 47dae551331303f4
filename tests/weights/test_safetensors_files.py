"""Safetensors files, read and written piece by piece, and headers that are refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from spunge.errors import ModelError
from spunge.weights.safetensors_files import create, read_header


def test_tensors_are_written_and_read_in_any_pieces(tmp_path):
    values = torch.arange(10.0)
    stored = create(tmp_path / "x.safetensors", {"a": (3,), "ü": (2, 5)})["ü"]
    for start, stop in ((4, 10), (0, 1), (1, 4)):
        stored.write(start, values[start:stop])
    assert torch.equal(read_header(tmp_path / "x.safetensors")["ü"].read(2, 9), values[2:9])
    loaded = load_file(tmp_path / "x.safetensors")
    assert torch.equal(loaded["ü"], values.reshape(2, 5))
    assert not loaded["a"].any()


def test_digests_and_comparison(tmp_path):
    tensors = {"a": torch.arange(6.0), "b": torch.arange(6.0), "c": torch.arange(6.0).bfloat16(), "d": torch.ones(6)}
    save_file({**tensors, "e": torch.arange(6.0).reshape(2, 3)}, tmp_path / "x.safetensors")
    stored = read_header(tmp_path / "x.safetensors")
    assert stored["a"].digest() == stored["b"].digest() != stored["d"].digest()
    assert stored["a"].checksum() == stored["b"].checksum() != stored["d"].checksum()
    assert stored["a"].equals(stored["b"])
    assert stored["a"].equals(stored["c"]), "the same values in another type"
    assert not stored["a"].equals(stored["d"])
    assert not stored["a"].equals(stored["e"])


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64, torch.complex64, torch.float8_e4m3fn])
def test_types_that_are_never_changed_are_read(tmp_path, dtype):
    values = torch.tensor([1, 2, 3]).to(dtype)
    save_file({"w": values}, tmp_path / "x.safetensors")
    assert read_header(tmp_path / "x.safetensors")["w"].load().equal(values)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"w": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}, "'w' is stored as F4, which is not supported"),
        (
            {
                "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
            },
            "'a' and 'b' overlap",
        ),
    ],
)
def test_a_header_that_cannot_be_read_says_why(tmp_path, header, message):
    encoded = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(len(encoded).to_bytes(8, "little") + encoded + b"\0" * 16)
    with pytest.raises(ModelError, match=message) as refused:
        read_header(tmp_path / "x.safetensors")
    assert ("damaged" in str(refused.value)) == ("overlap" in message)

"""Merging by compiled loops gives the plain way's bits, on every kind of input and with every setting of TIES."""

from __future__ import annotations

import itertools
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from spunge import merging
from spunge.errors import IncompatibleTaskVectors
from spunge.mergers import Ties
from spunge.merging import kernels
from spunge.weights.checkpoint import Checkpoint
from spunge.weights.task_vector import TaskVector, add

compiled = pytest.importorskip("spunge.merging.compiled", reason="needs the extra fast", exc_type=ImportError)
SHAPES = {"model.a.weight": (70, 1000), "model.b.weight": (3, 5), "model.norm.weight": (257,)}


@pytest.fixture(autouse=True)
def _as_a_process_begins():
    yield
    sys.modules["spunge.merging.compiled"] = compiled


def checkpoint(directory: Path, dtype: torch.dtype, seed: int, near: dict[str, torch.Tensor] | None = None) -> Path:
    directory.mkdir()
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    if near is not None:
        tensors = {name: near[name].float() + 0.01 * value for name, value in tensors.items()}
        tensors["model.a.weight"][::7] = near["model.a.weight"][::7].float()
    save_file({name: value.to(dtype) for name, value in tensors.items()}, directory / "model.safetensors")
    return directory


def both_ways(merge, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as plain:
        plain.delitem(sys.modules, "spunge.merging.compiled", raising=False)
        slow = merge()
        assert kernels.loops() is None
    monkeypatch.setitem(sys.modules, "spunge.merging.compiled", compiled)
    return slow, merge()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 0.37])
def test_a_checkpoint_is_the_same_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, scale: float
) -> None:
    base = checkpoint(tmp_path / "base", dtype, 0)
    near = load_file(base / "model.safetensors")
    paths = [checkpoint(tmp_path / f"v{seed}", dtype, seed, near) for seed in (1, 2, 3)]
    merger, counter = Ties.model_validate({"lambda": scale}), itertools.count()

    def merge() -> tuple[dict[str, torch.Tensor], dict]:
        opened, out = Checkpoint.open(base), tmp_path / f"out{next(counter)}"
        told = merging.write(merger, merging.open_variants(paths, opened), out, base=opened)
        return load_file(out / "model.safetensors"), told

    (slow, told), (fast, told_too) = both_ways(merge, monkeypatch)
    for name, value in slow.items():
        assert torch.equal(value.view(torch.uint8), fast[name].view(torch.uint8)), name
    assert_alike(told, told_too)


def assert_alike(one: object, other: object) -> None:
    """Equal but for sums, which may round in another order: they are told in six digits."""
    first, second = (json.loads(json.dumps(each)) for each in (one, other))

    def walk(a, b) -> None:
        assert type(a) is type(b)
        if isinstance(a, dict):
            assert a.keys() == b.keys()
            for key in a:
                walk(a[key], b[key])
        elif isinstance(a, list):
            assert len(a) == len(b)
            for x, y in zip(a, b, strict=True):
                walk(x, y)
        elif isinstance(a, float):
            # Float32 sums in other lanes, which differ from processor to processor: 1.4e-5 apart without AVX-512.
            assert a == pytest.approx(b, rel=1e-4, abs=1e-7)
        else:
            assert a == b

    walk(first, second)


@pytest.mark.parametrize("election", ["mass", "count"])
@pytest.mark.parametrize("normalize", ["count", "weights", "none"])
@pytest.mark.parametrize("threshold_ties", ["include", "exclude"])
@pytest.mark.parametrize("scope", ["tensor", "changed"])
def test_every_setting_of_ties(
    monkeypatch: pytest.MonkeyPatch, election: str, normalize: str, threshold_ties: str, scope: str
) -> None:
    generator = torch.Generator().manual_seed(5)
    vectors = {
        # Quarters tie with each other, cancel, and are zero.
        name: TaskVector({
            key: (torch.randn(shape, generator=generator) * 4).round() / 4 for key, shape in SHAPES.items()
        })
        for name in ("x", "y", "z")
    }  # fmt: skip
    merger = Ties(election=election, normalize=normalize, threshold_ties=threshold_ties, scope=scope,  # pyright: ignore[reportArgumentType]
                  weights={"x": 2.0, "y": 0.5}, density=0.3)  # fmt: skip
    slow, fast = both_ways(lambda: merging.merge(merger, vectors), monkeypatch)
    for name in SHAPES:
        one, other = (each.task_vector.read(name, 0, math.prod(SHAPES[name])) for each in (slow, fast))
        assert torch.equal(one.view(torch.int32), other.view(torch.int32)), name
    assert_alike(slow.diagnostics, fast.diagnostics)


def test_a_diverged_variant_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spunge.merging.compiled", compiled)
    for bad in (float("nan"), float("inf")):
        entry = torch.ones(300)
        entry[7] = bad
        with pytest.raises(IncompatibleTaskVectors, match="y holds NaN or infinity"):
            merging.merge(Ties(), {"x": TaskVector({"a": torch.ones(300)}), "y": TaskVector({"a": entry})})


def test_a_sum_too_large_for_the_base_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spunge.merging.compiled", compiled)
    base = tmp_path / "base"
    base.mkdir()
    save_file({"a": torch.full((300,), 3e38, dtype=torch.bfloat16)}, base / "model.safetensors")
    with pytest.raises(IncompatibleTaskVectors, match="base plus delta is NaN or infinite"):
        merging.write(Ties(), {"x": TaskVector({"a": torch.full((300,), 3e38)})}, tmp_path / "out",
                      base=Checkpoint.open(base))  # fmt: skip
    assert not (tmp_path / "out").exists()


@given(st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=40), st.integers(0, 2**32 - 1))
def test_a_sum_rounds_as_torch_rounds_it(weights: list[int], seed: int) -> None:
    weight = torch.tensor(np.array(weights, np.uint16).view(np.int16)).view(torch.bfloat16)
    generator = torch.Generator().manual_seed(seed)
    # Deltas of all sizes beside the weight, so that sums come to lie between two bfloat16.
    delta = torch.randn(len(weights), generator=generator) * weight.float().nan_to_num(1, 1, 1).abs() * 0.01
    out = torch.empty_like(weight)
    before, after = weight.view(torch.uint16).numpy(), out.view(torch.uint16).numpy()
    *_, finite = compiled.add_bfloat16(before, delta.numpy(), np.float32(1), False, after)
    expected = add(weight, delta, 1.0)
    assert finite == bool(expected.isfinite().all())
    assert torch.equal(out.nan_to_num(0.5), expected.nan_to_num(0.5))
    assert torch.equal(out.isnan(), expected.isnan())
    difference = torch.empty(len(weights))
    compiled.subtract_bfloat16(after, before, difference.numpy())
    assert torch.equal(difference.nan_to_num(0.5), (expected.float() - weight.float()).nan_to_num(0.5))


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=5000), st.data())
def test_a_search_counts_what_is_there(values: list[float], data: st.DataObject) -> None:
    bits = np.array(values, np.float32).view(np.int32)
    magnitudes = bits & 0x7FFFFFFF
    low = data.draw(st.integers(0, 0x7F800000))
    high = data.draw(st.integers(low, 0x7FFFFFFF))
    inside = np.empty(len(bits), np.int32)
    nonzero, above, count = compiled.search(bits, low, high, inside)
    assert nonzero == np.count_nonzero(magnitudes)
    assert above == (magnitudes >= high).sum()
    assert inside[:count].tolist() == magnitudes[(magnitudes >= low) & (magnitudes < high)].tolist()


def test_small_merges_and_machines_without_numba_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "spunge.merging.compiled")
    kernels.load_loops(kernels.COMPILED_FROM - 1)
    assert kernels.loops() is None
    monkeypatch.setattr(kernels, "find_spec", lambda name: None)
    kernels.load_loops(kernels.COMPILED_FROM)
    assert kernels.loops() is None

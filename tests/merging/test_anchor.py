"""The retain-anchored step against the problem it solves."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spunge.merging import anchored
from spunge.weights.task_vector import LowRank, TaskVector


def normalised(gram: np.ndarray) -> np.ndarray:
    return gram * len(gram) / np.trace(gram)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(1, 9), st.floats(0, 100), st.integers(1, 12))
def test_it_is_the_minimum(seed, rows, columns, mu, tokens):
    random = np.random.default_rng(seed)
    inputs = random.normal(size=(tokens, columns)) * random.uniform(0.1, 50)
    delta = random.normal(size=(rows, columns)).astype("f4")
    gram = inputs.T @ inputs / tokens
    vector = TaskVector({"w.weight": torch.from_numpy(delta)}, scale=-0.5)
    result = anchored(vector, {"w.weight": torch.from_numpy(gram.astype("f4"))}, mu)
    assert result.scale == -0.5
    # the same problem as plain least squares: rows of √μ · inputs ask for zero outputs, rows of the identity for Δ
    scaled = inputs * np.sqrt(mu * columns / np.trace(gram) / tokens)
    system = np.concatenate([np.eye(columns), scaled])
    wanted = np.linalg.lstsq(system, np.concatenate([delta.T, np.zeros((tokens, rows))]), rcond=None)[0].T
    assert np.allclose(
        result.read("w.weight", 0, delta.size).reshape(delta.shape).numpy(), wanted, rtol=1e-3, atol=1e-4
    )


def test_a_low_rank_change_stays_one_and_is_the_same():
    random = torch.Generator().manual_seed(0)
    factors = LowRank(torch.randn(2, 6, generator=random), torch.randn(5, 2, generator=random), 0.5)
    inputs = torch.randn(40, 6, generator=random)
    grams = {"w.weight": inputs.T @ inputs / 40}
    low = anchored(TaskVector({"w.weight": factors}), grams, 3.0)
    dense = anchored(TaskVector({"w.weight": factors.dense()}), grams, 3.0)
    assert isinstance(low.entries["w.weight"], LowRank)
    assert torch.allclose(low.delta("w.weight"), dense.delta("w.weight"), atol=1e-6)


def test_what_retain_inputs_meet_goes_and_the_rest_stays():
    inputs = torch.zeros(10, 4)
    inputs[:, :2] = torch.randn(10, 2, generator=torch.Generator().manual_seed(1))
    vector = TaskVector({"w.weight": torch.ones(3, 4), "bias": torch.ones(3)})
    result = anchored(vector, {"w.weight": inputs.T @ inputs / 10}, 1e6)
    assert result.delta("w.weight")[:, :2].abs().max() < 1e-4
    assert torch.equal(result.delta("w.weight")[:, 2:], torch.ones(3, 2))
    assert torch.equal(result.delta("bias"), torch.ones(3))

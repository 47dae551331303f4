"""The mergers of whole matrices against numpy, written from the papers, and what their results must have in common."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from spunge import merging
from spunge.interfaces import Merger
from spunge.mergers import AnyMerger, Isotropic, Knots, Tsv, Wudi
from spunge.run.identity import identity
from spunge.weights.task_vector import TaskVector

Matrices = list[np.ndarray]
SPECTRAL = [Tsv(), Isotropic(), Isotropic(common=1.0), Wudi(), Knots(), Knots(density=0.5)]


def triples(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rank = np.linalg.matrix_rank(matrix, tol=np.linalg.norm(matrix, 2) * 1e-5)
    left, values, right = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    return left[:, :rank], values[:rank], right[:rank]


def polar(columns: np.ndarray) -> np.ndarray:
    """A (AᵀA)^(−½): another way to the polar factor than the singular vectors."""
    values, vectors = np.linalg.eigh(columns.T @ columns)
    roots = np.array([1 / np.sqrt(v) if v > 1e-9 else 0.0 for v in values])
    return columns @ (vectors * roots) @ vectors.T


def naive_tsv(deltas: Matrices) -> np.ndarray:
    k = max(min(deltas[0].shape) // len(deltas), 1)
    cut = [(u[:, :k], s[:k], v[:k]) for u, s, v in map(triples, deltas)]
    left = polar(np.concatenate([u for u, _, _ in cut], axis=1))
    right = polar(np.concatenate([v.T for _, _, v in cut], axis=1))
    return left @ np.diag(np.concatenate([s for _, s, _ in cut])) @ right.T


def naive_isotropic(deltas: Matrices, common: float) -> np.ndarray:
    left, values, right = triples(np.sum([d.astype(np.float64) for d in deltas], axis=0))
    each = int(len(values) * (1 - common)) // len(deltas)
    k = len(values) - each * len(deltas)
    lefts, lengths, rights = [left[:, :k]], [values[:k]], [right[:k].T]
    for delta in deltas:
        u, s, v = triples((np.eye(len(delta)) - left[:, :k] @ left[:, :k].T) @ delta)
        lefts.append(u[:, :each])
        lengths.append(s[:each])
        rights.append(v[:each].T)
    mean = np.concatenate(lengths).mean()
    return mean * polar(np.concatenate(lefts, axis=1)) @ polar(np.concatenate(rights, axis=1)).T


def naive_wudi(deltas: Matrices) -> np.ndarray:
    """Least squares row by row: of (Δ − Δᵢ) Δᵢᵀ / ‖Δᵢ‖, the variants' equations under each other."""
    wide = [d.astype(np.float64) for d in deltas]
    matrix = np.concatenate([d / np.linalg.norm(d) for d in wide])
    target = np.concatenate([d @ d.T / np.linalg.norm(d) for d in wide])
    return np.linalg.lstsq(matrix, target, rcond=1e-6)[0].T


def naive_knots(deltas: Matrices, density: float) -> np.ndarray:
    left, values, right = triples(np.concatenate(deltas, axis=1))
    parts = np.split(np.diag(values) @ right, len(deltas), axis=1)
    merged = np.zeros_like(parts[0])
    kept = []
    for part in parts:
        count = max(int(density * part.size), 1)
        threshold = np.sort(np.abs(part).ravel())[::-1][count - 1]
        kept.append(np.where(np.abs(part) >= threshold, part, 0))
    for place in np.ndindex(merged.shape):
        column = [part[place] for part in kept]
        sign = np.sign(sum(column))
        agreeing = [x for x in column if x * sign > 0]
        merged[place] = np.mean(agreeing) if agreeing else 0.0
    return left @ merged


NAIVE: list[tuple[Merger, Any]] = [
    (Tsv(), naive_tsv),
    (Isotropic(common=1.0), lambda deltas: naive_isotropic(deltas, 1.0)),
    (Isotropic(common=0.5), lambda deltas: naive_isotropic(deltas, 0.5)),
    (Wudi(), naive_wudi),
    (Knots(), lambda deltas: naive_knots(deltas, 1.0)),
    (Knots(density=0.3), lambda deltas: naive_knots(deltas, 0.3)),
]


def low_rank(seed: int, variants: int, rows: int, columns: int, rank: int) -> Matrices:
    random = np.random.default_rng(seed)
    return [
        (random.normal(size=(rows, rank)) @ random.normal(size=(rank, columns)) * random.uniform(0.1, 2)).astype("f4")
        for _ in range(variants)
    ]


def merged(merger: Merger, deltas: Matrices) -> np.ndarray:
    variants = {f"v{i}": TaskVector({"w.weight": torch.from_numpy(d)}) for i, d in enumerate(deltas)}
    return merging.merge(merger, variants).task_vector.delta("w.weight").numpy()


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(3, 24), st.integers(3, 24), st.integers(1, 24), st.data()
)
def test_as_the_papers_say(seed, variants, rows, columns, rank, data):
    merger, naive = data.draw(st.sampled_from(NAIVE))
    deltas = low_rank(seed, variants, rows, columns, min(rank, rows, columns))
    wanted = naive(deltas)
    assert np.abs(merged(merger, deltas) - wanted).max() <= 2e-4 * max(np.abs(wanted).max(), 1e-3)


@pytest.mark.parametrize("merger", [Tsv(), Wudi(), Knots()])
def test_what_does_not_overlap_is_added_unchanged(merger):
    """Rows and columns of their own: nothing interferes, so nothing may be lost."""
    first, second = np.zeros((12, 10), "f4"), np.zeros((12, 10), "f4")
    first[:6, :5], second[6:, 5:] = low_rank(0, 2, 6, 5, 2)
    wanted = first + second
    assert np.allclose(merged(merger, [first, second]), wanted, atol=1e-5)


@pytest.mark.parametrize("merger", [Tsv(), Wudi(), Knots()])
def test_equal_variants_merge_to_themselves(merger):
    (delta,) = low_rank(3, 1, 14, 9, 3)
    assert np.allclose(merged(merger, [delta] * 3), delta, atol=1e-5)


def test_null_directions_of_a_lora_do_not_enter():
    """Rank 2 in a 40 × 30 matrix leaves each variant ten arbitrary triples of TSV-M's fifteen, if they are let in."""
    deltas = low_rank(5, 2, 40, 30, 2)
    for merger in SPECTRAL:
        rank = np.linalg.matrix_rank(merged(merger, deltas), tol=1e-3)
        assert rank <= 4, merger


@pytest.mark.parametrize("merger", SPECTRAL)
def test_a_matrix_that_nothing_changes_stays(merger):
    zeros = np.zeros((6, 5), "f4")
    assert not merged(merger, [zeros, zeros]).any()
    alone = merged(merger, [low_rank(1, 1, 6, 5, 2)[0], zeros])
    assert np.isfinite(alone).all()
    assert alone.any()


@pytest.mark.parametrize("merger", SPECTRAL)
def test_biases_are_averaged_and_experts_taken_one_by_one(merger):
    random = torch.Generator().manual_seed(0)
    experts = {name: torch.randn(3, 7, 5, generator=random) for name in "ab"}
    biases = {name: torch.randn(9, generator=random) for name in "ab"}
    variants = {name: TaskVector({"experts": experts[name], "bias": biases[name]}) for name in "ab"}
    found = merging.merge(merger, variants).task_vector
    assert torch.equal(found.delta("bias"), (biases["a"] + biases["b"]) / 2)
    for index in range(3):
        alone = merged(merger, [experts[name][index].numpy() for name in "ab"])
        assert np.allclose(found.delta("experts")[index].numpy(), alone, atol=1e-6)


def test_wudi_averages_embeddings():
    random = torch.Generator().manual_seed(0)
    rows = {name: torch.randn(20, 6, generator=random) for name in "ab"}
    variants = {name: TaskVector({"model.embed_tokens.weight": rows[name]}) for name in "ab"}
    found = merging.merge(Wudi(), variants).task_vector.delta("model.embed_tokens.weight")
    assert torch.equal(found, (rows["a"] + rows["b"]) / 2)


def test_weights_scale_what_a_variant_brings():
    deltas = low_rank(7, 2, 12, 10, 2)
    for method in ("tsv", "isotropic", "wudi", "knots"):
        weighted = TypeAdapter(AnyMerger).validate_python({"method": method, "weights": {"v0": 3.0}})
        plain = TypeAdapter(AnyMerger).validate_python({"method": method})
        assert np.allclose(merged(weighted, deltas), merged(plain, [3 * deltas[0], deltas[1]]), atol=1e-4)


def test_the_published_steps_of_wudi_are_adam_on_its_loss():
    deltas = [torch.tensor(delta, dtype=torch.float64) for delta in low_rank(5, 3, 7, 6, 2)]
    expected = torch.stack(deltas).sum(0).requires_grad_(True)
    optimizer = torch.optim.Adam([expected], lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        losses = [(((expected - delta) @ delta.T).norm() / delta.norm()).square() for delta in deltas]
        torch.stack(losses).sum().backward()
        optimizer.step()
    found = merged(Wudi(steps=40, learning_rate=1e-2), [delta.numpy() for delta in deltas])
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-4, atol=1e-5)
    # The solution is where many steps lead.
    far = merged(Wudi(steps=3000, learning_rate=1e-2), [delta.numpy() for delta in deltas])
    solved = merged(Wudi(), [delta.numpy() for delta in deltas])
    losses = [
        sum(float((((torch.tensor(one) - delta) @ delta.T).norm() / delta.norm()) ** 2) for delta in deltas)
        for one in (solved, far, found)
    ]
    assert losses[0] <= losses[1] + 1e-6 < losses[2]


def test_settings_that_came_later_are_out_of_the_key():
    assert "steps" not in identity(Wudi())
    assert identity(Wudi(steps=300)) == {**identity(Wudi()), "steps": 300}
    assert "layer_scaling" not in identity(Tsv())
    assert identity(Tsv(layer_scaling=(0.5, 1))) == {**identity(Tsv()), "layer_scaling": [0.5, 1.0]}

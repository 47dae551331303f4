"""Each merge method against its own formula, written entry by entry."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spunge import merging
from spunge.errors import RecipeError
from spunge.interfaces import RETAIN, Merger
from spunge.mergers import (
    Breadcrumbs,
    Consensus,
    Dare,
    Della,
    EmrUnified,
    Linear,
    MagMax,
    MagnitudePrune,
    RetainRegMean,
    TaskArithmetic,
    Ties,
)
from spunge.merging import Options
from spunge.weights.task_vector import TaskVector

Column = list[np.float32]


def signs_agree(column: Column) -> bool:
    return all(x > 0 for x in column) or all(x < 0 for x in column)


def total(column: Column) -> np.float32:
    result = column[0]
    for x in column[1:]:
        result = result + x
    return result


def by_magmax(column: Column) -> np.float32:
    return max(column, key=abs)


def by_emr(column: Column) -> np.float32:
    sign = np.sign(total(column))
    return sign * max([abs(x) for x in column if x * sign > 0], default=np.float32(0))


ENTRYWISE: list[tuple[Merger, Callable[[Column], np.float32]]] = [
    (TaskArithmetic(), total),
    (Linear(), lambda column: total(column) / np.float32(len(column))),
    (MagMax(), by_magmax),
    (EmrUnified(), by_emr),
    (Consensus(), lambda c: total(c) / np.float32(len(c)) if signs_agree(c) else np.float32(0)),
    (MagnitudePrune(density=1), total),
    (Dare(density=1), total),
    (Della(density=1, epsilon=0, election="none"), total),
]


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 5), st.integers(0, 2**32 - 1), st.sampled_from(ENTRYWISE))
def test_entry_by_entry(variants, seed, case):
    merger, formula = case
    random = np.random.default_rng(seed)
    stacked = (random.integers(-4, 5, (variants, 6, 5)) * random.random((variants, 1, 1))).astype(np.float32)
    merged = merging.merge(merger, {f"v{i}": TaskVector({"w": torch.from_numpy(d)}) for i, d in enumerate(stacked)})
    wanted = np.apply_along_axis(lambda column: formula(list(column)), 0, stacked)
    assert np.array_equal(merged.task_vector.delta("w").numpy(), wanted)


@pytest.mark.parametrize(
    ("merger", "wanted"),
    [
        (TaskArithmetic(weights={"a": -2, "b": 0.5}), [-6 + 0.5, 4 + 1.5]),
        (Linear(weights={"a": 3}), [(9 + 1) / 4, (-6 + 3) / 4]),
        (MagMax(weights={"a": 2}), [6.0, -4.0]),
        (EmrUnified(weights={"b": 4}), [4.0, 12.0]),
        (Consensus(weights={"a": 3}), [2.5, 0.0]),
    ],
)
def test_weights(merger, wanted):
    variants = {"a": TaskVector({"w": torch.tensor([3.0, -2.0])}), "b": TaskVector({"w": torch.tensor([1.0, 3.0])})}
    assert merging.merge(merger, variants).task_vector.delta("w").tolist() == wanted


def test_a_variant_without_a_tensor_did_not_change_it():
    variants = {
        "a": TaskVector({"w": torch.tensor([3.0]), "x": torch.tensor([2.0])}),
        "b": TaskVector({"w": torch.ones(1)}),
    }
    assert merging.merge(Linear(), variants).task_vector.delta("x").tolist() == [1.0]
    assert merging.merge(Consensus(), variants).task_vector.delta("x").tolist() == [0.0]


def test_magnitude_prune_is_ties_without_election():
    variants = {
        v: TaskVector({"w": torch.randn(20, generator=torch.Generator().manual_seed(i))}) for i, v in enumerate("ab")
    }
    alone = [merging.merge(Ties(density=0.3), {v: variants[v]}).task_vector.delta("w") for v in variants]
    merged = merging.merge(MagnitudePrune(density=0.3), variants).task_vector.delta("w")
    assert torch.equal(merged, alone[0] + alone[1])


def test_breadcrumbs_cut_both_ends():
    values = torch.tensor([1.0, -2, 3, -4, 5, -6, 7, -8, 9, -10])
    merged = merging.merge(Breadcrumbs(density=0.3, gamma=0.2), {"a": TaskVector({"w": values})}).task_vector
    assert merged.delta("w").tolist() == [0, 0, 0, 0, 0, -6, 7, -8, 0, 0]
    whole = merging.merge(Breadcrumbs(density=0.3, gamma=0), {"a": TaskVector({"w": values})}).task_vector
    assert whole.delta("w").tolist() == [0, 0, 0, 0, 0, 0, 0, -8, 9, -10]


def drawn(merger: Merger, seed: int = 0, tensor: str = "w", variant: str = "a") -> torch.Tensor:
    variants = {variant: TaskVector({tensor: torch.ones(200, 500)})}
    return merging.merge(merger, variants, options=Options(seed=seed)).task_vector.delta(tensor)


def test_dare_keeps_a_random_share_and_rescales_it():
    kept = drawn(Dare(density=0.25))
    assert set(kept.unique().tolist()) == {0.0, 4.0}
    assert kept.mean().item() == pytest.approx(1.0, abs=0.02)
    # no rows or columns stand out: a share of 500 draws has a standard deviation of 0.019
    for axis in (0, 1):
        assert (kept.count_nonzero(axis) / kept.shape[axis] - 0.25).abs().max() < 0.15
    assert set(drawn(Dare(density=0.25, rescale=False)).unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("merger", [Dare(), Della()])
def test_draws_depend_on_seed_tensor_and_variant_alone(merger):
    first = drawn(merger)
    assert torch.equal(first, drawn(merger))
    for other in (drawn(merger, seed=1), drawn(merger, tensor="x"), drawn(merger, variant="b")):
        differ = (first != other).float().mean().item()
        assert differ == pytest.approx(2 * 0.2 * 0.8, abs=0.03), "the draws are independent"


def test_della_keeps_the_large_more_often():
    values = torch.arange(1.0, 1001).expand(400, 1000).contiguous()
    merger = Della(density=0.3, epsilon=0.4, rescale=False)
    kept = merging.merge(merger, {"a": TaskVector({"w": values})}).task_vector.delta("w") > 0
    assert kept[:, :100].float().mean().item() == pytest.approx(0.12, abs=0.01)
    assert kept[:, -100:].float().mean().item() == pytest.approx(0.48, abs=0.01)


def test_della_rescales_to_the_same_expectation():
    values = torch.linspace(1.0, 2, 100).expand(5000, 100).contiguous()
    merged = merging.merge(Della(density=0.5, epsilon=0.4), {"a": TaskVector({"w": values})}).task_vector
    assert torch.allclose(merged.delta("w").mean(0), values[0], rtol=0.08)


def regmean_case() -> tuple[dict[str, TaskVector], dict[str, torch.Tensor], merging.Grams]:
    generator = torch.Generator().manual_seed(0)
    inputs = {name: torch.randn(50, 6, generator=generator) for name in ("a", "b", RETAIN)}
    variants = {v: TaskVector({"w": torch.randn(4, 6, generator=generator), "n": torch.ones(3)}) for v in "ab"}
    grams = {name: {"w": x.T @ x / len(x)} for name, x in inputs.items()}
    return variants, inputs, grams


def test_retain_regmean_is_the_least_squares_solution():
    variants, inputs, grams = regmean_case()
    merger = RetainRegMean(beta=2.0, shrink=0.0, ridge=1e-12, weights={"b": 3.0})
    merged = merging.merge(merger, variants, options=Options(grams=grams)).task_vector
    # The same by ordinary least squares on the stacked inputs and wanted outputs.
    weights = {"a": 1.0, "b": 3.0, RETAIN: 2.0}
    rows = [(weights[n] / len(x)) ** 0.5 * x.double() for n, x in inputs.items()]
    wanted = [rows[0] @ variants["a"].delta("w").double().T, rows[1] @ variants["b"].delta("w").double().T]
    outputs = torch.cat([*wanted, torch.zeros(50, 4, dtype=torch.float64)])
    solution = torch.linalg.lstsq(torch.cat(rows), outputs).solution.T
    assert torch.allclose(merged.delta("w").double(), solution, atol=1e-5)
    assert merged.delta("n").tolist() == [1.0, 1.0, 1.0], "a tensor without inputs is averaged"


def test_retain_regmean_needs_inputs():
    variants, _, grams = regmean_case()
    with pytest.raises(RecipeError, match="Gram matrices of 'retain'"):
        merging.merge(RetainRegMean(), variants, options=Options(grams={name: grams[name] for name in "ab"}))


def test_retain_regmean_with_a_great_beta_stays_at_the_base():
    variants, _, grams = regmean_case()
    merged = merging.merge(RetainRegMean(beta=1e6), variants, options=Options(grams=grams)).task_vector
    assert merged.delta("w").abs().max() < 1e-4


def test_gram_matrices_are_of_the_inputs_of_linear_layers(tiny_model):
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    ids = torch.arange(4, 24).reshape(4, 5)
    mask = torch.ones_like(ids)
    mask[0, 2:] = 0
    batches = [{"input_ids": ids[half], "attention_mask": mask[half]} for half in (slice(0, 1), slice(1, 4))]
    name = "model.layers.0.mlp.down_proj.weight"
    names = {name: "stored", "model.norm.weight": "norm", "model.embed_tokens.weight": "embed"}
    found = merging.gram_matrices(model, names, batches)
    assert set(found) == {"stored"}
    seen = []
    layer = model.get_submodule("model.layers.0.mlp.down_proj")
    layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    model(**{key: torch.cat([batch[key] for batch in batches]) for key in batches[0]})
    inputs = seen[0][mask.bool()]
    assert len(inputs) == 17
    assert torch.allclose(found["stored"], inputs.T @ inputs / 17, atol=1e-6)


def test_gram_matrices_of_a_model_that_makes_one_row_a_token():
    import transformers

    config = transformers.OPTConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=24, word_embed_proj_dim=16
    )
    model = transformers.OPTForCausalLM(config).eval()
    ids, mask = torch.arange(4, 14).reshape(2, 5), torch.ones(2, 5, dtype=torch.long)
    mask[0, 3:] = 0
    seen = []
    model.get_submodule("model.decoder.layers.0.fc2").register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].detach().reshape(2, 5, 24))
    )
    name = "model.decoder.layers.0.fc2.weight"
    found = merging.gram_matrices(model, {name: name}, [{"input_ids": ids, "attention_mask": mask}])[name]
    inputs = seen[0][mask.bool()]
    assert torch.allclose(found, inputs.T @ inputs / 8, atol=1e-6)

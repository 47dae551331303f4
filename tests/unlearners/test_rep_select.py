"""RepSelect against its formulas in numpy, and against plain transformers on the way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training_models import save_model, texts, work_in
from transformers import AutoModelForCausalLM

from spunge.asking.divergence import whole_texts
from spunge.errors import DataError, RecipeError
from spunge.training.rows import plan
from spunge.training.settings import Lora, Tuning
from spunge.training.trainee import borrow
from spunge.training.tuned import chosen_weights
from spunge.training.whitening import descend, summed_gradient, whitened
from spunge.unlearners.rep_select import RepSelect
from spunge.weights.task_vector import TaskVector

shapes = st.tuples(st.integers(1, 9), st.integers(1, 9))


@given(shapes, st.integers(1, 12), st.integers(0, 2**20))
def test_the_whitening_is_its_formula(shape: tuple[int, int], components: int, seed: int) -> None:
    gradient = np.random.default_rng(seed).normal(size=shape)
    left, values, right = np.linalg.svd(gradient, full_matrices=False)
    count = min(components, *shape)
    lowered = np.diag(1 - values[count - 1] / values[:count])

    def collapsed(matrix: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        return matrix - matrix @ vectors @ lowered @ vectors.T

    expected = collapsed(collapsed(gradient, right[:count].T).T, left[:, :count]).T
    found = whitened(torch.tensor(gradient, dtype=torch.float32), components)
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-4 * values[0])
    # Of the leading triples s becomes s_min² / s; the others stay.
    after = left.T @ found.double().numpy() @ right.T
    lowest = np.concatenate([values[count - 1] ** 2 / values[:count], values[count:]])
    np.testing.assert_allclose(after, np.diag(lowest), atol=2e-4 * values[0])


@given(st.integers(2, 8), st.integers(1, 3), st.integers(0, 2**20))
def test_null_directions_leave_something(size: int, rank: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    gradient = torch.randn(size, rank, generator=generator) @ torch.randn(rank, size, generator=generator)
    found = whitened(gradient, 8)
    assert found.isfinite().all()
    assert found.norm() > 0
    assert not whitened(torch.zeros(3, 4), 2).any()


@pytest.fixture
def base(tmp_path):
    return save_model(tmp_path / "model")


def nll(model, ids):
    log_probs = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    return -log_probs[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]


def test_the_gradient_is_that_of_a_plain_model_with_the_adapter_added(base, tmp_path) -> None:
    settings = Tuning(lora=Lora(rank=2, dropout=0, target_modules="all-linear"), batch_size=3)
    work, corpus = work_in(tmp_path), texts(7)
    model, tokenizer = work.resident.base(base)
    weights = {
        name: value
        for name, value in chosen_weights(model, work.resident.names(base), ("mlp",)).items()
        if value.ndim == 2
    }
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    with borrow(settings, base, work) as trainee:
        rows = trainee.encode(corpus)
        batches = [i for (step,) in plan([rows], settings, torch.Generator().manual_seed(0)) for i in step]
        descend(trainee, rows, batches, 0.5)
        learnt = TaskVector(trainee.entries())
        found = summed_gradient(trainee, weights, rows, batches, lambda *_, **__: None)
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name])
        assert value.grad is None
    assert learnt.norm > 0.01
    assert set(found) == set(weights)

    plain = AutoModelForCausalLM.from_pretrained(base.id).eval()
    with torch.no_grad():
        for name, value in plain.named_parameters():
            if name in learnt:
                value += learnt.delta(name)
    for indices in batches:
        each = [nll(plain, tokenizer(corpus.texts[index])["input_ids"]) for index in indices]
        torch.cat(each).mean().backward()
    for name, value in found.items():
        torch.testing.assert_close(value, plain.get_parameter(name).grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_it_unlearns_up_to_the_budget_in_the_matrices_named(tmp_path, kind) -> None:
    base = save_model(tmp_path / "model", kind)
    method = RepSelect(lora=Lora(rank=2, dropout=0, target_modules="all-linear"), budget=0.02, components=4, tokens=60)
    work, forget, retain = work_in(tmp_path), texts(8), texts(12, seed=9)
    change = method.unlearn(base, forget, retain, work)
    assert all(".mlp." in name and change.delta(name).ndim == 2 for name in change)
    again = method.unlearn(base, forget, retain, work_in(tmp_path / "again"))
    assert all(torch.equal(change.delta(name), again.delta(name)) for name in change)

    plain, edited = (AutoModelForCausalLM.from_pretrained(base.id).eval() for _ in range(2))
    with torch.no_grad():
        for name in change:
            edited.get_parameter(name).add_(change.delta(name))
        tokenizer = base.load_tokenizer()
        length = 64  # what either model reads at once
        kl, positions = 0.0, 0
        for ids in whole_texts(tokenizer, retain.texts, tokens=60, length=length):
            p, q = (model(torch.tensor([ids])).logits[0].double().log_softmax(-1) for model in (plain, edited))
            kl, positions = kl + float((p.exp() * (p - q)).sum()), positions + len(ids)
        assert 0.94 * 0.02 < kl / positions <= 0.0201
        rows = [tokenizer(text)["input_ids"] for text in forget.texts]
        lost = [float((nll(edited, ids) - nll(plain, ids)).mean()) for ids in rows]
    assert sum(lost) / len(lost) > 0.02


def test_what_it_cannot_do_is_refused(base, tmp_path) -> None:
    with pytest.raises(DataError, match="rep_select needs a retain set"):
        RepSelect().unlearn(base, texts(), None, work_in(tmp_path))
    with pytest.raises(RecipeError, match="names no matrix of the model"):
        RepSelect(parameters=("norm",)).unlearn(base, texts(), texts(), work_in(tmp_path))
    forecast = RepSelect().forecast(base, texts(), texts(), work_in(tmp_path))
    assert forecast.changed == 2 * 3 * 16 * 24
    assert forecast.operations
    assert forecast.operations > 0

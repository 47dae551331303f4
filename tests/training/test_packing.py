"""Packed rows against the same rows padded: losses, gradients and training; and models that can't keep rows apart."""

from array import array
from functools import wraps

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training_models import answers, save_model, texts, work_in

from spunge.training import losses, packing
from spunge.training.rows import Encoded, collate
from spunge.training.settings import Tuning
from spunge.training.trainee import borrow
from spunge.unlearners import NPO


def padded(model, batch):
    """Every position's logits, computed with pads under a mask; then those that predict a token that counts."""
    logits = model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits
    return logits[:, :-1][batch.counted[:, 1:]]


def gradients(model, loss):
    parameters = [value for value in model.parameters() if value.requires_grad]
    return torch.autograd.grad(loss, parameters, allow_unused=True)


@pytest.mark.parametrize("corpus", [texts, answers])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_rows_have_the_loss_and_the_gradients_of_padded_ones(tmp_path, kind, corpus, checkpointing):
    base = save_model(tmp_path / "model", kind)
    tuning = Tuning(lora=None, gradient_checkpointing=checkpointing)
    with borrow(tuning, base, work_in(tmp_path)) as trainee:
        assert trainee.packs
        batch = trainee.collate(trainee.encode(corpus(5)), [3, 0, 4, 1])
        ours, theirs = trainee(batch), padded(trainee.model, batch)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        pair = (losses.cross_entropy(logits, batch.labels) for logits in (ours, theirs))
        for one, other in zip(*(gradients(trainee.model, loss) for loss in pair), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_one_loss_for_each_row_adds_up_to_its_tokens(tmp_path):
    base = save_model(tmp_path / "model")
    with borrow(Tuning(lora=None), base, work_in(tmp_path)) as trainee, torch.no_grad():
        rows = trainee.encode(answers(6))
        together = trainee.log_probs(rows)
        for index, row in enumerate(rows):
            ids = torch.tensor(row.ids)
            log_probs = trainee.model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
            alone = sum(log_probs[at - 1, ids[at]] for at in range(max(row.start, 1), len(ids)))
            assert float(together[index]) == pytest.approx(float(alone), rel=1e-4)


def test_a_model_is_handed_back_with_the_attention_it_came_with(tmp_path):
    base = save_model(tmp_path / "model")
    work = work_in(tmp_path)
    model, _ = work.resident.base(base)
    with borrow(Tuning(), base, work) as trainee:
        assert trainee.model.config._attn_implementation != "sdpa"
        batch = trainee.collate(trainee.encode(texts(4)), [0, 1, 2])
        by_mask = padded(trainee.model, batch)  # a mask is heeded as before
    assert model.config._attn_implementation == "sdpa"
    with torch.no_grad():
        assert torch.equal(padded(model, batch), by_mask.detach())


def test_rows_longer_than_a_window_are_padded(tmp_path):
    base = save_model(tmp_path / "model")
    with borrow(Tuning(lora=None), base, work_in(tmp_path)) as trainee:
        batch = trainee.collate(trainee.encode(texts(4)), [0, 1, 2])
        trainee.model.config.sliding_window = batch.ids.shape[1]
        assert packing.fits(trainee.model, batch)
        trainee.model.config.sliding_window -= 1
        assert not packing.fits(trainee.model, batch)
        torch.testing.assert_close(trainee(batch), padded(trainee.model, batch))


def test_a_model_that_gives_rows_no_heed_is_found_out(tmp_path, monkeypatch):
    base = save_model(tmp_path / "model")
    work = work_in(tmp_path)
    model, _ = work.resident.base(base)
    whole = type(model).forward

    @wraps(whole)  # the same arguments, to all appearance
    def forgetful(self, input_ids, *, row_lengths=None, position_ids=None, **inputs):
        return whole(self, input_ids, **inputs)

    monkeypatch.setattr(type(model), "forward", forgetful)
    with packing.attention_by_rows(model) as packs:
        assert not packs


@pytest.mark.parametrize("change", [{"_attn_implementation": "eager"}, {"layer_types": ["linear_attention"]}])
def test_what_cannot_be_packed_is_padded_and_learns_the_same(tmp_path, change):
    base = save_model(tmp_path / "model")
    given = texts(6), texts(6, seed=1), work_in(tmp_path / "packed")
    method = NPO(lora=None, max_steps=3, batch_size=3, learning_rate=1e-3)
    packed = method.unlearn(base, *given)
    work = work_in(tmp_path / "padded")
    model, _ = work.resident.base(base)
    for name, value in change.items():
        setattr(model.config, name, value)
    with borrow(method, base, work) as trainee:
        assert not trainee.packs
    apart = method.unlearn(base, *given[:2], work)
    assert set(packed) == set(apart)
    assert (packed.norm, apart.norm) == (pytest.approx(apart.norm, rel=1e-3), pytest.approx(packed.norm, rel=1e-3))


@given(lengths=st.lists(st.integers(2, 9), min_size=1, max_size=6), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_every_token_that_counts_is_predicted_by_the_one_before_it(lengths, seed):
    draw = torch.Generator().manual_seed(seed)
    ids = [torch.randint(0, 50, (length,), generator=draw).tolist() for length in lengths]
    starts = [int(torch.randint(0, length, (1,), generator=draw)) for length in lengths]
    rows = [Encoded(array("i", row), start) for row, start in zip(ids, starts, strict=True)]
    batch = collate(rows, range(len(rows)), pad=0, device="cpu")
    asked = packing.pack(batch)
    stream = [token for row in ids for token in row]
    assert asked["input_ids"].tolist() == [stream]
    assert asked["row_lengths"] == tuple(lengths)
    assert asked["position_ids"].tolist() == [[at for length in lengths for at in range(length)]]
    assert [stream[at + 1] for at in asked["logits_to_keep"].tolist()] == batch.labels.tolist()
    expected = [row[at] for row, start in zip(ids, starts, strict=True) for at in range(max(start, 1), len(row))]
    assert batch.labels.tolist() == expected
    assert sum(batch.lengths) == len(expected)

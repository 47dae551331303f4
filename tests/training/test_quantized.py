"""QLoRA: the base in 4 bits while the adapter trains, the adapter added to the base's own weights."""

import warnings

import pytest
import torch
from training_models import save_model, texts, work_in

from spunge.errors import MissingExtra
from spunge.training import trainee
from spunge.training.settings import Lora
from spunge.training.trainee import borrow
from spunge.unlearners.npo import NPO
from spunge.unlearners.task_vector_negation import TaskVectorNegation
from spunge.weights.task_vector import LowRank

METHOD = TaskVectorNegation(lora=Lora(rank=4, dropout=0), learning_rate=1e-2, epochs=3, quantize="nf4")


def test_the_extra_is_named_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(trainee, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"quantize: nf4 needs bitsandbytes: pip install 'spunge\[quant\]'"):
        METHOD.unlearn(save_model(tmp_path / "model"), texts(), None, work_in(tmp_path))


def test_weights_in_4_bits_cannot_be_trained():
    with pytest.raises(ValueError, match="quantize: 4-bit weights cannot be trained themselves"):
        TaskVectorNegation(lora=None, quantize="nf4")


def test_an_adapter_is_trained_on_a_base_in_4_bits(tmp_path):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    base = save_model(tmp_path / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bitsandbytes' own, about processors
        with borrow(METHOD, base, work_in(tmp_path)) as one:
            kinds = {type(module.weight) for module in one.model.modules() if isinstance(module, torch.nn.Linear)}
            assert bitsandbytes.nn.Params4bit in kinds
            assert {value.dtype for value in one.parameters.values()} == {torch.float32}
        work = work_in(tmp_path / "run")
        found = METHOD.unlearn(base, texts(), None, work)
        plain = METHOD.model_copy(update={"quantize": None}).unlearn(base, texts(), None, work_in(tmp_path / "plain"))
    assert set(found) == set(plain)
    assert all(isinstance(entry, LowRank) for entry in found.entries.values())
    here, there = (torch.cat([one.delta(name).flatten() for name in plain]) for one in (found, plain))
    assert 0.7 < torch.nn.functional.cosine_similarity(here, there, dim=0) < 0.9999  # near, yet not the same
    with work.resident.variant(base, found) as model:
        assert {value.dtype for value in model.parameters()} == {torch.float32}


def test_gradients_pass_after_the_base_was_asked_in_between(tmp_path):
    pytest.importorskip("bitsandbytes")
    method = NPO(lora=Lora(rank=4, dropout=0), learning_rate=1e-2, epochs=1, quantize="nf4")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        work = work_in(tmp_path)
        assert method.unlearn(save_model(tmp_path / "model"), texts(), texts(), work).norm > 0

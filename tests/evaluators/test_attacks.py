"""Attacks change the model, show in the table, and leave no trace."""

import polars as pl
import pytest
import torch
from evaluate_models import byte_tokenizer, llama, variant, work, write
from hypothesis import given, settings
from hypothesis import strategies as st

from spunge.errors import DataError
from spunge.evaluators.attacks import Quantization, Relearning
from spunge.evaluators.attacks.quantization import _NF4, quantized

TEXTS = ["the moss of Tor is wet", "the glyphs of Ana break at noon", "the tide brings salt to Bel"]


def reading(tmp_path) -> dict:
    path = write(tmp_path / "texts.jsonl", [{"text": text} for text in TEXTS])
    return {"method": "perplexity", "suite": "inner", "goal": "retain", "sources": [{"path": str(path)}]}


def perplexities(table: pl.DataFrame) -> dict[str, float]:
    return dict(table.filter(pl.col("metric") == "nll").group_by("task").agg(pl.col("value").sum()).iter_rows())


def weights(model) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def naive(row: list[float], code: str, block: int) -> list[float]:
    out = []
    for start in range(0, len(row), block):
        part = row[start : start + block]
        scale = max(map(abs, part)) or 1.0
        most = {"int8": 127, "int4": 7}.get(code)
        grid = [level / most for level in range(-most, most + 1)] if most else list(_NF4)
        out += [min(grid, key=lambda level, x=x, scale=scale: abs(level - x / scale)) * scale for x in part]
    return out


@settings(deadline=None)
@given(
    rows=st.integers(1, 6).flatmap(
        lambda n: st.lists(st.lists(st.floats(-2, 2, width=16), min_size=n, max_size=n), min_size=1, max_size=3)
    ),
    code=st.sampled_from(["int8", "int4", "nf4"]),
    block=st.integers(2, 8),
)
def test_every_weight_goes_to_a_nearest_level_of_its_block(rows, code, block):
    weight = torch.tensor(rows)
    found = quantized(weight, code, block)
    expected = torch.tensor([naive(row, code, min(block, len(row))) for row in rows])
    # At a tie both levels are nearest: compare how far, not which.
    assert torch.allclose((found - weight).abs(), (expected - weight).abs(), atol=1e-5)


def test_quantization_is_seen_and_undone(tmp_path):
    model = llama()
    before = weights(model)
    evaluator = Quantization.model_validate({"suite": "q", "goal": "forget", "of": reading(tmp_path)})
    table = evaluator.evaluate(variant(model, byte_tokenizer()), work(tmp_path))
    whole = perplexities(evaluator.of.evaluate(variant(model, byte_tokenizer()), work(tmp_path)))["inner"]
    found = perplexities(table)
    assert set(found) == {"inner @ int8", "inner @ int4", "inner @ nf4"}
    assert set(table["suite"]) == {"q"}
    assert evaluator.described["attacks"] == "inner"
    assert 0 < abs(found["inner @ int8"] - whole) < abs(found["inner @ int4"] - whole)
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def test_relearning_learns_and_leaves_no_trace(tmp_path):
    model = llama(initializer_range=0.05)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    before = weights(model)
    asked = reading(tmp_path)
    settings = {"suite": "r", "goal": "forget", "of": asked, "train_on": asked["sources"], "rows": 3}
    evaluator = Relearning.model_validate({**settings, "steps": [0, 4, 12], "learning_rate": 1e-2})
    runs = [evaluator.evaluate(variant(model, byte_tokenizer()), work(tmp_path)) for _ in range(2)]
    found = perplexities(runs[0])
    assert found["inner @ 0 steps"] > found["inner @ 4 steps"] > found["inner @ 12 steps"]
    assert runs[0].equals(runs[1])
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.training


def test_too_few_rows_and_falling_steps_are_errors(tmp_path):
    asked = reading(tmp_path)
    settings = {"suite": "r", "goal": "forget", "of": asked, "train_on": asked["sources"]}
    with pytest.raises(DataError, match="3 training rows, rows: 16"):
        Relearning.model_validate(settings).evaluate(variant(llama(), byte_tokenizer()), work(tmp_path))
    with pytest.raises(ValueError, match="must rise"):
        Relearning.model_validate({**settings, "steps": [3, 1]})

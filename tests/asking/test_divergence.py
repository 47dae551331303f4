"""The divergence per token against whole texts read at once in float64, and how little it holds."""

import copy
import math
import os
import tracemalloc

import pytest
import torch
from evaluate_models import MODELS, byte_tokenizer, llama
from hypothesis import given, settings
from hypothesis import strategies as st

from spunge.asking.divergence import kl_per_token, predict, whole_texts
from spunge.asking.lower_layers import LowerLayers, unchanged_layers
from spunge.errors import DataError
from spunge.weights.shape import find_layers


def moved(model, by):
    """The model with noise of this size on its weights."""
    other = copy.deepcopy(model)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(by * torch.randn_like(weight))
    return other


def naive(model, other, texts):
    """Σ p (log p − log q) over all words, then the mean over all positions."""
    total = []
    for ids in texts:
        with torch.no_grad():
            p, q = (
                one(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0].double().log_softmax(-1)
                for one in (model, other)
            )
        for position in range(len(ids)):
            total.append(sum(float(a.exp() * (a - b)) for a, b in zip(p[position], q[position], strict=True)))
    return sum(total) / len(total)


TEXTS = [tuple(range(3, 40)), (0, 7, 7, 8), tuple(range(200, 130, -1))]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("by", [0.003, 0.1])
def test_it_is_the_mean_over_every_position_of_every_text(tmp_path, name, by):
    model = MODELS[name]
    other = moved(model, by)
    base = predict(model, TEXTS, tmp_path)
    assert len(base) == sum(map(len, TEXTS))
    expected = naive(model, other, TEXTS)
    assert kl_per_token(base, other) == pytest.approx(expected, rel=1e-3, abs=1e-7)
    assert expected > 0


@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(st.integers(0, 299), min_size=1, max_size=60), min_size=1, max_size=3), st.integers(1, 70))
def test_how_it_is_cut_changes_nothing_but_rounding(tmp_path_factory, texts, positions):
    model, path = MODELS["llama"], tmp_path_factory.mktemp("cut")
    other = moved(model, 0.05)
    whole = kl_per_token(predict(model, texts, path), other)
    cut = kl_per_token(predict(model, texts, path, positions=positions), other, positions=positions)
    assert cut == pytest.approx(whole, rel=1e-4, abs=1e-7)
    assert whole > 0


def test_nothing_changed_is_no_damage_and_a_broken_model_is_all_of_it(tmp_path):
    model = MODELS["gpt2"]
    base = predict(model, TEXTS, tmp_path)
    assert kl_per_token(base, model) < 1e-6
    assert kl_per_token(base, moved(model, math.nan)) == math.inf


def test_the_first_token_alone_does_not_tell(tmp_path):
    """A change that a model only shows later in a text is damage all the same."""
    model = MODELS["gpt2"]
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.get_parameter("transformer.wpe.weight")[16:] *= -3.0
    text = tuple(range(3, 100))
    start = kl_per_token(predict(model, [text[:16]], tmp_path), other)
    assert start < 1e-6
    assert kl_per_token(predict(model, [text], tmp_path), other) > 0.1


def test_it_holds_a_slice_of_the_words_at_once(tmp_path):
    model = llama(vocab_size=60_000)
    text = tuple(range(3, 403))
    base = predict(model, [text], tmp_path)
    assert os.fstat(base.file.fileno()).st_size == 400 * 60_000 * 4
    assert not list(tmp_path.iterdir())
    tracemalloc.start()  # what numpy reads is counted, what torch computes is not
    kl_per_token(base, model)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6


def test_short_rows_are_joined_to_whole_texts():
    tokenizer = byte_tokenizer()
    texts = whole_texts(tokenizer, ["a" * 50, "b" * 100, "c" * 300, "d" * 400], tokens=250)
    assert [len(ids) for ids in texts] == [128, 128]
    assert all(ids[0] == tokenizer.bos_token_id for ids in texts)
    assert tokenizer.decode(list(texts[0][1:])) == "a" * 50 + "\n\n" + "b" * 75
    assert tokenizer.decode(list(texts[1][1:])) == "c" * 127
    assert len(whole_texts(tokenizer, ["a" * 500] * 3, tokens=10_000)) == 3
    # Where there is less than one, that is what there is.
    assert [len(ids) for ids in whole_texts(tokenizer, ["a" * 50, "b" * 10], tokens=10)] == [63]
    with pytest.raises(DataError, match="give more rows"):
        whole_texts(tokenizer, [], tokens=10)


@pytest.mark.parametrize("name", MODELS)
def test_layers_that_nothing_changes_are_run_once(tmp_path, monkeypatch, name):
    model = MODELS[name]
    layers = find_layers(model.get_decoder())
    prefix = next(title for title, module in model.named_modules() if module is layers)
    above = {title for title, _ in model.named_parameters() if title.startswith(f"{prefix}.{len(layers) - 1}.")}
    count = unchanged_layers(model, above, TEXTS[0])
    assert count == len(layers) - 1
    known, base = LowerLayers(model, TEXTS, count), predict(model, TEXTS, tmp_path)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for title in above:
            other.get_parameter(title).mul_(1.3)
    whole = kl_per_token(base, other)
    for layer in find_layers(other.get_decoder())[:count]:  # what is not run may hold anything
        for weight in layer.parameters():
            weight.data.fill_(math.nan)
    assert kl_per_token(base, other, below=known) == whole > 0
    assert kl_per_token(base, other) == math.inf  # and the model is as it was afterwards
    # Below the lowest layer nothing is left; what lies outside the layers may be read first of all.
    assert unchanged_layers(model, {*above, f"{prefix}.0.any"}, TEXTS[0]) == 0
    assert unchanged_layers(model, {*above, "embedding"}, TEXTS[0]) == 0
    assert unchanged_layers(model, set(), TEXTS[0]) == 0

"""A greedy completion in a batch is the one that is written alone, token by token."""

import pytest
import torch
from evaluate_models import MODELS, llama
from hypothesis import given, settings
from hypothesis import strategies as st

from spunge.asking import continuous
from spunge.asking.batching import Batching
from spunge.asking.completions import complete
from spunge.asking.continuous import can_write_side_by_side


@pytest.mark.parametrize("name", MODELS)
def test_completions_equal_those_written_alone_token_by_token(name):
    model = MODELS[name]
    prompts = [(0, *range(5, 5 + length)) for length in (1, 7, 3, 12, 2)]
    stop = {7, 11, 42, 100, 150, 200, 250}
    written = complete(model, prompts, Batching(3), max_new_tokens=12, stop=stop)
    assert written == [alone(model, prompt, 12, stop) for prompt in prompts]


def alone(model, prompt, limit, stop):
    """The greedy completion of one prompt, the long way: the whole text read again for every token."""
    ids: list[int] = []
    while len(ids) < limit and not (ids and ids[-1] in stop):
        logits = model(input_ids=torch.tensor([[*prompt, *ids]]), use_cache=False).logits
        ids.append(int(logits[0, -1].argmax()))
    return tuple(ids)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral, window 400"])
@settings(max_examples=40, deadline=None)
@given(
    beginning=st.sampled_from([(), (0,), tuple(range(20, 45))]),
    asked=st.lists(st.tuples(st.lists(st.integers(3, 299), min_size=1, max_size=60), st.integers(0, 15)), max_size=9),
    stop=st.sets(st.integers(0, 299), max_size=60),
    size=st.none() | st.integers(1, 4),
)
def test_each_text_among_others_is_the_one_written_alone(name, beginning, asked, stop, size):
    model = MODELS[name]
    prompts, limits = [(*beginning, *ids) for ids, _ in asked], [limit for _, limit in asked]
    written = complete(model, prompts, Batching(size), max_new_tokens=limits, stop=stop)
    assert written == [alone(model, *one, stop) for one in zip(prompts, limits, strict=True)]


def test_a_text_that_has_ended_makes_room_at_once_and_nothing_is_read_twice():
    model, read = llama(), []
    model.register_forward_pre_hook(lambda *call: read.append(call[2]["input_ids"].shape[-1]), with_kwargs=True)
    begin = tuple(range(20, 40))
    prompts = [(*begin, 50 + number, 60) for number in range(6)]
    complete(model, prompts, Batching(2), max_new_tokens=[2, 4, 2, 2, 1, 1], stop=())
    tried, asked = read[:5], read[5:]
    assert max(tried) < 10
    # What all begin with; two prompts; then one goes on beside the next prompt, and so on: never more than two texts.
    assert asked[:2] == [20, 4]
    assert sum(asked) == 20 + 6 * 2 + (1 + 3 + 1 + 1)
    assert len(asked) == 1 + 6


def test_a_model_whose_attention_mixes_texts_is_found_out(monkeypatch):
    model = llama()
    monkeypatch.setattr(continuous, "_attend", lambda module, query, *rest, **options: (query.transpose(1, 2), None))
    assert not can_write_side_by_side(model)
    assert model.config._attn_implementation == "sdpa"

"""Shared prefixes, caches and batches must give what scoring every pair alone gives."""

import pytest
from evaluate_models import MODELS, alone
from hypothesis import given, settings
from hypothesis import strategies as st

from spunge.asking import batching, likelihoods
from spunge.asking.batching import Batching
from spunge.asking.encoding import Request

token = st.integers(3, 299)
ids = st.lists(token, min_size=1, max_size=6)


@st.composite
def request_lists(draw: st.DrawFn) -> list[Request]:
    prefix = draw(st.sampled_from([[], [0], list(range(10, 30))]))
    contexts = [prefix + draw(ids) for _ in range(draw(st.integers(1, 4)))]
    requests = []
    for _ in range(draw(st.integers(1, 8))):
        requests.append(Request(tuple(draw(st.sampled_from(contexts))), tuple(draw(st.lists(token, max_size=5)))))
    return requests


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=25, deadline=None)
@given(requests=request_lists(), batch_size=st.integers(1, 5))
def test_scores_equal_those_of_every_pair_alone(name, requests, batch_size):
    scores = likelihoods.loglikelihoods(MODELS[name], requests, Batching(batch_size))
    expected = [alone(MODELS[name], [*r.context], [*r.continuation]) for r in requests]
    assert scores == pytest.approx(expected, abs=1e-4, rel=1e-5)


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=15, deadline=None)
@given(requests=request_lists(), numbers=st.integers(1, 3000))
def test_a_head_that_is_asked_slice_by_slice_says_the_same(name, requests, numbers):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(likelihoods, "LOGITS_AT_ONCE", numbers)
        patch.setattr(batching, "TOKENS_AT_ONCE", 20)
        scores = likelihoods.loglikelihoods(MODELS[name], requests, Batching(4))
    expected = [alone(MODELS[name], [*r.context], [*r.continuation]) for r in requests]
    assert scores == pytest.approx(expected, abs=1e-4, rel=1e-5)


def test_logits_of_a_long_text_never_lie_in_memory_at_once(monkeypatch):
    model, seen = MODELS["llama"], []
    monkeypatch.setattr(likelihoods, "LOGITS_AT_ONCE", 3000)
    hook = model.lm_head.register_forward_hook(lambda *call: seen.append(call[2].numel()))
    below = model.model.layers[0].register_forward_hook(lambda *call: seen.append("a layer"))
    likelihoods.loglikelihoods(model, [Request((0,), tuple(range(3, 100)))], Batching(1))
    hook.remove()
    below.remove()
    assert seen.count("a layer") == 1
    assert max(count for count in seen if count != "a layer") == 3000
    assert len(seen) == 1 + 10


def test_a_shared_beginning_is_read_once(monkeypatch):
    model = MODELS["llama"]
    widths = []
    forward = likelihoods.forward
    monkeypatch.setattr(
        likelihoods, "forward", lambda model, rows, *rest, **options: (
            widths.append([len(row) for row in rows]), forward(model, rows, *rest, **options)
        )[1],
    )  # fmt: skip
    prefix = tuple(range(3, 103))
    requests = [Request((*prefix, 200 + q), (210 + c,)) for q in range(4) for c in range(4)]
    likelihoods.loglikelihoods(model, requests, Batching(4))
    assert widths == [[100], [1, 1, 1, 1]]

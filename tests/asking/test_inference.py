"""Shared prefixes, caches and batches must give what scoring every pair alone gives."""

import pytest
import torch
from evaluate_models import alone, byte_tokenizer, gpt2, llama, mistral
from hypothesis import given, settings
from hypothesis import strategies as st

from spunge.asking import inference
from spunge.asking.inference import Request

MODELS = {"llama": llama(), "gpt2": gpt2(), "mistral": mistral(), "mistral, window 400": mistral(sliding_window=400)}
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
    scores = inference.loglikelihoods(MODELS[name], requests, batch_size=batch_size)
    expected = [alone(MODELS[name], [*r.context], [*r.continuation]) for r in requests]
    assert scores == pytest.approx(expected, abs=1e-4, rel=1e-5)


def test_a_shared_beginning_is_read_once(monkeypatch):
    model = MODELS["llama"]
    widths = []
    forward = inference._forward
    monkeypatch.setattr(
        inference, "_forward", lambda model, rows, *rest, **options: (
            widths.append([len(row) for row in rows]), forward(model, rows, *rest, **options)
        )[1],
    )  # fmt: skip
    prefix = tuple(range(3, 103))
    requests = [Request((*prefix, 200 + q), (210 + c,)) for q in range(4) for c in range(4)]
    inference.loglikelihoods(model, requests, batch_size=4)
    assert widths == [[100], [1, 1, 1, 1]]


@pytest.mark.parametrize("name", MODELS)
def test_completions_equal_those_written_alone_token_by_token(name):
    model = MODELS[name]
    prompts = [(0, *range(5, 5 + length)) for length in (1, 7, 3, 12, 2)]
    stop = {7, 11, 42, 100, 150, 200, 250}
    written = inference.complete(model, prompts, max_new_tokens=12, stop=stop, batch_size=3)
    for prompt, completion in zip(prompts, written, strict=True):
        expected: list[int] = []
        while len(expected) < 12 and not (expected and expected[-1] in stop):
            logits = model(input_ids=torch.tensor([[*prompt, *expected]]), use_cache=False).logits
            expected.append(int(logits[0, -1].argmax()))
        assert list(completion) == expected


class Killed(Exception):
    """What stands for a kill."""


@pytest.mark.parametrize("ask", ["loglikelihoods", "token_scores", "complete"])
@pytest.mark.parametrize("name", ["llama", "mistral, window 400"])
def test_a_killed_attempt_is_continued_to_the_same_numbers(name, ask, tmp_path, monkeypatch):
    model, asked = MODELS[name], []
    monkeypatch.setattr(model, "forward", lambda *a, forward=model.forward, **k: (asked.append(1), forward(*a, **k))[1])
    requests = [Request((0, *range(5, 6 + n % 7)), tuple(range(9, 10 + n))) for n in range(12)]
    what = [request.context for request in requests] if ask == "complete" else requests
    options = {"batch_size": 2, **({"max_new_tokens": 3, "stop": {7}} if ask == "complete" else {})}
    expected = getattr(inference, ask)(model, what, **options)
    whole = len(asked)

    def killed_after(batches):
        def progress(what, done, total, /, **figures):
            if done >= 2 * batches:
                raise Killed

        return progress

    for batches in (1, 3):
        with pytest.raises(Killed):
            getattr(inference, ask)(model, what, **options, scratch=tmp_path, progress=killed_after(batches))
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes() + b'[[0.5, "torn')
    asked.clear()
    assert getattr(inference, ask)(model, what, **options, scratch=tmp_path) == expected
    assert 0 < len(asked) <= whole // 2 + 1
    asked.clear()
    assert getattr(inference, ask)(model, what, **options, scratch=tmp_path) == expected
    assert len(asked) <= 1  # the shared beginning
    assert getattr(inference, ask)(model, what[1:], **options, scratch=tmp_path) != expected
    assert len(list(tmp_path.iterdir())) == 2


@settings(deadline=None)
@given(context=ids, continuation=ids, length=st.integers(2, 10))
def test_what_is_too_long_is_cut_from_the_left(context, continuation, length):
    request, cut = inference.fit(Request(tuple(context), tuple(continuation)), length)
    whole = context + continuation
    assert cut == (len(whole) > length + 1)
    assert [*request.context, *request.continuation] == whole[-(length + 1) :]
    assert request.context
    assert len(request.continuation) == min(len(continuation), length)


def test_blanks_belong_to_the_continuation_and_an_empty_context_becomes_the_beginning():
    tokenizer = byte_tokenizer()
    blank, plain = inference.encode_pairs(tokenizer, [("Answer: ", "A"), ("Answer:", " A")])
    assert blank == plain
    assert tokenizer.decode(list(plain.continuation)) == " A"
    (empty,) = inference.encode_pairs(tokenizer, [("", "A")])
    assert empty.context == (tokenizer.bos_token_id,)
    assert tokenizer.decode(list(empty.continuation)) == "A"


def test_a_text_that_begins_with_the_beginning_token_gets_no_second_one():
    tokenizer = byte_tokenizer()
    assert inference.encode(tokenizer, ["<s>ab", "ab"])[0] == inference.encode(tokenizer, ["ab"])[0]

"""Memorisation: each figure against its definition, and a model that knows one text by heart."""

import math

import polars as pl
import pytest
import torch
from evaluate_models import CHAT, alone, byte_tokenizer, llama, variant, work, write
from hypothesis import given
from hypothesis import strategies as st

from spunge.asking.batching import Batching
from spunge.asking.encoding import Request
from spunge.asking.likelihoods import TokenScores, token_scores
from spunge.errors import DataError
from spunge.evaluators.memorization import Memorization, extraction_strength, measure, rouge_l


def evaluator(path, **options) -> Memorization:
    return Memorization.model_validate({"suite": "m", "goal": "forget", "sources": [{"path": str(path)}], **options})


@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_extraction_strength_is_the_shortest_prompt_that_gives_the_rest(greedy):
    total = len(greedy)
    shortest = min(k for k in range(total + 1) if all(greedy[k:]))
    assert extraction_strength(greedy) == pytest.approx(1 - shortest / total)


def test_nothing_right_is_strength_zero_and_all_right_is_one():
    assert extraction_strength([False] * 5) == 0.0
    assert extraction_strength([True] * 5) == 1.0
    assert extraction_strength([True, True, False]) == 0.0


def naive_lcs(a: list[str], b: list[str]) -> int:
    if not a or not b:
        return 0
    if a[0] == b[0]:
        return 1 + naive_lcs(a[1:], b[1:])
    return max(naive_lcs(a[1:], b), naive_lcs(a, b[1:]))


words = st.lists(st.sampled_from("abc"), max_size=7)


@given(words, words)
def test_rouge_l_is_the_longest_common_subsequence(reference, answer):
    expected = naive_lcs(reference, answer) / len(reference) if reference else 0.0
    assert rouge_l(" ".join(reference), " ".join(answer)) == pytest.approx(expected)


def test_token_scores_equal_their_definitions_and_ignore_the_batch():
    model = llama()
    requests = [Request((0, 5, 9), (7, 8, 30, 41)), Request((0,), (12,)), Request((0, 3), ())]
    scores = token_scores(model, requests, Batching(3))
    for request, score in zip(requests, scores, strict=True):
        ids = [*request.context, *request.continuation]
        logs = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1).detach()
        for place, token in enumerate(request.continuation):
            row = logs[len(request.context) + place - 1]
            mean = float((row.exp() * row).sum())
            assert score.loglikelihoods[place] == pytest.approx(float(row[token]), rel=1e-4)
            assert score.means[place] == pytest.approx(mean, rel=1e-4)
            assert score.deviations[place] == pytest.approx(
                float((row.exp() * (row - mean) ** 2).sum()) ** 0.5, rel=1e-3
            )
            assert score.greedy[place] == (int(row.argmax()) == token)


def test_min_k_is_the_mean_of_the_least_likely():
    scores = TokenScores([-1.0, -5.0, -2.0, -4.0, -3.0], [-2.0] * 5, [0.5] * 5, [True] * 5)
    found = measure(scores, "text", 0.4)
    assert found["min_k"] == -4.5
    assert found["min_k_plus_plus"] == pytest.approx(((-5 + 2) / 0.5 + (-4 + 2) / 0.5) / 2)
    assert found["nll"] == 15.0
    lost = measure(TokenScores([math.nan], [0.0], [0.0], [False]), "t", 0.2)
    assert (lost["nan"], lost["nll"], lost["extraction_strength"]) == (1.0, None, None)


def test_what_a_model_was_taught_by_heart_is_found_and_nothing_else(tmp_path):
    model, tokenizer = llama(initializer_range=0.05), byte_tokenizer()
    ids = torch.tensor([tokenizer.encode("Who is Ana? The smith of Tor.")])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-2)
    for _ in range(60):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    path = write(
        tmp_path / "rows.jsonl",
        [
            {"prompt": "Who is Ana?", "response": "The smith of Tor.", "member": True},
            {"prompt": "Who is Bel?", "response": "Nobody knows his work.", "member": False},
        ],
    )
    table = evaluator(path, attributes=["member"]).evaluate(variant(model, tokenizer), work(tmp_path))
    for metric in ("extraction_strength", "exact_memorization", "rouge_l", "min_k", "min_k_plus_plus", "zlib_ratio"):
        found = dict(table.filter(pl.col("metric") == metric).select("attributes", "value").iter_rows())
        known, unknown = found['{"member": true}'], found['{"member": false}']
        assert known > unknown, metric
        if metric in ("extraction_strength", "exact_memorization", "rouge_l"):
            assert known == 1.0


def test_a_prompt_is_asked_in_the_chat_template_and_a_text_is_not(tmp_path):
    model, tokenizer = llama(), byte_tokenizer()
    tokenizer.chat_template = CHAT
    rows = [{"text": "Ana is a smith.", "prompt": None, "response": None}, {"prompt": "Who?", "response": "A smith."}]
    table = evaluator(write(tmp_path / "rows.jsonl", rows)).evaluate(variant(model, tokenizer), work(tmp_path))

    def plain(text):
        return tokenizer.encode(text, add_special_tokens=False)

    opening = "[user on 10 Apr 2025]Who?[end]\n[assistant on 10 Apr 2025]"
    expected = [alone(model, [0], plain("Ana is a smith.")), alone(model, plain(opening), plain("A smith."))]
    assert table.filter(metric="nll")["value"].to_list() == pytest.approx([-each for each in expected], rel=1e-4)


def test_rows_without_a_response_or_text_are_an_error(tmp_path):
    loaded = variant(llama(), byte_tokenizer())
    with pytest.raises(DataError, match="neither 'response' nor 'text'"):
        evaluator(write(tmp_path / "a.jsonl", [{"prompt": "x"}])).evaluate(loaded, work(tmp_path))
    with pytest.raises(DataError, match="empty response"):
        evaluator(write(tmp_path / "b.jsonl", [{"text": ""}])).evaluate(loaded, work(tmp_path))
    with pytest.raises(DataError, match="empty response"):
        evaluator(write(tmp_path / "c.jsonl", [{"prompt": "x", "response": " "}])).evaluate(loaded, work(tmp_path))


def test_members_are_told_apart_by_the_area_under_the_curve(tmp_path):
    model, tokenizer = llama(), byte_tokenizer()
    rows = [{"text": text, "seen": seen} for text, seen in (("aaaa", True), ("bcde", False), ("aabb", True))]
    found = evaluator(write(tmp_path / "rows.jsonl", rows), member="seen").evaluate(
        variant(model, tokenizer), work(tmp_path)
    )
    for metric in ("min_k", "min_k_plus_plus", "zlib_ratio"):
        seen, unseen, again = found.filter(metric=metric)["value"].to_list()
        wins = [(high > unseen) + (high == unseen) / 2 for high in (seen, again)]
        assert found.filter(metric=f"{metric}_auc")["value"].to_list() == [pytest.approx(sum(wins) / 2)]
    with pytest.raises(DataError, match="column 'seen' must hold both true and false, not True"):
        evaluator(write(tmp_path / "one.jsonl", rows[:1]), member="seen").evaluate(
            variant(model, tokenizer), work(tmp_path)
        )

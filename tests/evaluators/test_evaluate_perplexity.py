"""Perplexity: every token scored once, windows that overlap, and the figure a naive loop gives."""

import math

import polars as pl
import pytest
from evaluate_models import alone, byte_tokenizer, llama, variant, work, write
from hypothesis import given
from hypothesis import strategies as st

from spunge.errors import DataError
from spunge.evaluators.perplexity import Perplexity, windows

MODEL, TOKENIZER = llama(), byte_tokenizer()


def read(tmp_path, texts, **options) -> pl.DataFrame:
    path = write(tmp_path / "rows.jsonl", [{"text": text} for text in texts])
    evaluator = Perplexity.model_validate({"suite": "s", "goal": "retain", "sources": [{"path": str(path)}], **options})
    return evaluator.evaluate(variant(MODEL, TOKENIZER), work(tmp_path))


@given(length=st.integers(2, 60), window=st.integers(2, 20), data=st.data())
def test_every_id_but_the_first_is_scored_once_in_order_with_enough_before_it(length, window, data):
    stride = data.draw(st.integers(1, window - 1))
    ids = tuple(range(length))
    cuts = windows(ids, window, stride)
    assert [i for _, scored in cuts for i in scored] == list(ids[1:])
    for number, (context, scored) in enumerate(cuts):
        assert context[-1] + 1 == scored[0]
        assert len(context) + len(scored) <= window + 1
        if number:
            assert len(context) + len(scored) == window + 1
            assert len(scored) <= stride


def test_a_text_within_the_window_is_read_as_one(tmp_path):
    table = read(tmp_path, ["a small text", "another"])
    for text, nll, tokens, perplexity in zip(
        ["a small text", "another"],
        *(table.filter(pl.col("metric") == name)["value"] for name in ("nll", "tokens", "perplexity")),
        strict=True,
    ):
        ids = TOKENIZER.encode(text)
        expected = -alone(MODEL, ids[:1], ids[1:])
        assert nll == pytest.approx(expected, rel=1e-5)
        assert tokens == len(ids) - 1
        assert perplexity == pytest.approx(math.exp(expected / tokens), rel=1e-5)


def test_strided_windows_score_what_a_naive_loop_scores(tmp_path):
    table = read(tmp_path, ["a text of some length, longer than a window"], window=10, stride=4, batch_size=3)
    ids = TOKENIZER.encode("a text of some length, longer than a window")
    total, done = -alone(MODEL, ids[:1], ids[1:11]), 11
    while done < len(ids):
        stop = min(done + 4, len(ids))
        total -= alone(MODEL, ids[stop - 11 : done], ids[done:stop])
        done = stop
    assert table.filter(pl.col("metric") == "nll")["value"].item() == pytest.approx(total, rel=1e-5)


def test_empty_text_and_windows_that_do_not_fit_are_errors(tmp_path):
    with pytest.raises(DataError, match="empty 'text'"):
        read(tmp_path, [""])
    with pytest.raises(DataError, match="reads 512 tokens"):
        read(tmp_path, ["a"], window=1000)
    with pytest.raises(DataError, match="stride 8"):
        read(tmp_path, ["a"], window=8, stride=8)

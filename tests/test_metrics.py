"""Which way a metric is better, by what a high figure means and what the suite is for."""

from dataclasses import asdict

import pytest

from spunge.evaluators import BY_METHOD
from spunge.evaluators.attacks import Quantization
from spunge.metrics import Metric, read_metric


@pytest.mark.parametrize(
    ("better", "on_forget", "on_retain"),
    [("kept", False, True), ("gone", True, False), ("high", True, True), ("low", False, False)],
)
def test_which_way_is_better(better, on_forget, on_retain):
    metric = Metric("x", better=better)
    assert (metric.higher_is_better("forget"), metric.higher_is_better("retain")) == (on_forget, on_retain)


def test_a_metric_is_read_back_and_a_newer_field_left_alone():
    metric = Metric("x", "in words", "head", share=True, answers=("no", "yes"))
    assert read_metric({**asdict(metric), "later": 1}) == metric
    assert hash(read_metric(asdict(metric))) == hash(metric)
    assert (Metric("x").in_words, Metric("x").head) == ("x", "x")


def test_every_evaluator_of_ours_declares_what_it_is_judged_by():
    for kind in BY_METHOD.values():
        names = [metric.name for metric in kind.metrics]
        assert len(set(names)) == len(names)
    attack = Quantization.model_validate({
        "suite": "a", "goal": "forget",
        "of": {"suite": "s", "method": "multiple_choice", "goal": "forget", "sources": [{"path": "x"}]},
    })  # fmt: skip
    assert attack.headline.name == "acc"
    assert attack.described["metrics"][0]["label"] == "accuracy"
    shares = {metric.name for kind in BY_METHOD.values() for metric in kind.metrics if metric.share}
    assert {"rouge_l", "probability", "truthfulness", "extraction_strength"} <= shares

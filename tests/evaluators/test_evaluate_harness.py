"""lm-eval's tasks on local rows of the true schemas, item by item; what lm-eval is not needed for is tested without."""

import importlib.metadata
import json
import math
import sys
from types import SimpleNamespace

import polars as pl
import pytest
from evaluate_models import byte_tokenizer, llama, variant, work, write

from spunge.errors import DataError, MissingExtra, RecipeError
from spunge.evaluators.harness import SUITES, Harness, read_samples
from spunge.run.identity import identity

WORDS = ["venom", "glyph", "moss", "tide", "ember", "salt", "loom", "reed", "wick", "fern"]


def harness(**options) -> Harness:
    return Harness.model_validate({"suite": "h", "goal": "retain", **options})


def sample(number: int, scores: list[float], **options) -> dict:
    return {
        "doc_id": number, "doc": {"subject": "x"}, "doc_hash": f"hash{number}", "filter": "none", "metrics": ["acc"],
        "acc": 1.0, "target": 0, "arguments": [("q", f" {index}") for index in range(len(scores))],
        "filtered_resps": [(score, False) for score in scores], **options,
    }  # fmt: skip


def of(measured, metric):
    return [one.values.get(metric) for one in measured]


def test_suites_are_the_papers_ten_and_their_shots():
    assert len(SUITES["paper-ten"]) == 10
    assert harness(tasks=["wmdp", "piqa"]).planned() == [("wmdp_bio", 0), ("wmdp_cyber", 0), ("piqa", None)]
    assert harness(tasks=["mmlu-5shot"], shots=1).planned() == [("mmlu", 1)]


def test_samples_become_items_with_all_their_choices():
    found = read_samples("t", [sample(1, [-1.0, -3.0]), sample(0, [-2.0, -1.0])], ["subject", "other"])
    assert of(found, "choice_loglikelihood:1") == [-1.0, -3.0]
    assert of(found, "margin") == [-1.0, 2.0]
    assert of(found, "chosen") == [1.0, 0.0]
    assert of(found, "p_correct")[1] == pytest.approx(1 / (1 + math.exp(-2)))
    assert json.loads(found[0].item.attributes) == {"subject": "x", "other": None}


def test_equal_rows_are_different_items_and_filters_share_one():
    twice = read_samples("t", [sample(0, [-1.0, -2.0]), sample(1, [-1.0, -2.0], doc_hash="hash0")], [])
    assert len({one.item.id for one in twice}) == 2
    answers = [
        {**sample(0, []), "filter": name, "filtered_resps": ["42"], "metrics": ["exact_match"], "exact_match": value}
        for name, value in (("strict-match", 0.0), ("flexible-extract", 1.0))
    ]
    (one,) = read_samples("gsm8k", answers, [])
    assert one.values == {"exact_match,strict-match": 0.0, "exact_match,flexible-extract": 1.0, "nan": 0.0}


def test_truthfulqa_does_not_underflow():
    targets = {"mc2_targets": {"labels": [1, 1, 0]}}
    damaged = sample(0, [-2000.0, -2001.0, -2000.0], doc=targets, acc=float("nan"))
    (one,) = read_samples("truthfulqa_mc2", [damaged], [])
    assert one.values["acc"] == pytest.approx((1 + math.exp(-1)) / (2 + math.exp(-1)))
    assert one.values["nan"] == 0.0


def test_what_is_no_number_is_counted():
    (one,) = read_samples("t", [sample(0, [float("nan"), -1.0])], [])
    assert (one.values["choice_loglikelihood:0"], one.values["nan"]) == (None, 1.0)


def test_answers_given_as_text_are_found_among_the_choices():
    (one,) = read_samples("t", [sample(0, [-1.0, -3.0], target="1")], [])
    assert one.values["answer"] == 1.0
    (winogrande,) = read_samples("t", [sample(0, [-1.0, -3.0], arguments=[("a", " x"), ("b", " x")])], [])
    assert "answer" not in winogrande.values


def test_without_lm_eval_the_error_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingExtra, match=r"pip install 'spunge\[harness\]'"):
        harness(tasks=["piqa"]).evaluate(variant(llama(), byte_tokenizer()), work(tmp_path))
    with pytest.raises(MissingExtra):  # and before anything is unlearned
        harness(tasks=["piqa"]).check()


def test_the_results_of_another_lm_eval_are_not_reused(monkeypatch):
    def installed(version: str) -> dict:
        monkeypatch.setattr(importlib.metadata, "version", {"lm_eval": version}.__getitem__)
        return identity(harness(tasks=["piqa"]))

    monkeypatch.setitem(sys.modules, "lm_eval", SimpleNamespace(evaluator=None))
    assert installed("0.4.13") == installed("0.4.13")
    assert installed("0.4.13") == {**installed("0.4.14"), "depends_on": {"lm_eval": "0.4.13"}}


def rows(task: str) -> dict[str, list[dict]]:
    """Nine rows a split, in the schema that the task's data set really has."""

    def made(n: int) -> dict:
        question, options = f"Which is {WORDS[n]}?", WORDS[n:] + WORDS[:n]
        letters = ["A", "B", "C", "D"]
        return {
            "arc_easy": {"question": question, "answerKey": "B", "choices": {"text": options[:4], "label": letters}},
            "hellaswag": {
                "activity_label": "Weaving", "ctx_a": f"A {WORDS[n]} lies.", "ctx_b": "the [title] moss",
                "endings": options[:4], "label": str(n % 4),
            },
            "mmlu_virology": {"question": question, "choices": options[:4], "answer": n % 4, "subject": "virology"},
            "truthfulqa_mc2": {
                "question": question,
                "mc1_targets": {"choices": options[:3], "labels": [1, 0, 0]},
                "mc2_targets": {"choices": options[:4], "labels": [1, 1, 0, 0]},
            },
            "winogrande": {
                "sentence": f"The {WORDS[n]} fell on the {WORDS[n - 1]} as _ was wet.", "option1": "the one",
                "option2": "the other", "answer": str(1 + n % 2),
            },
            "gsm8k": {"question": question, "answer": f"As it is.\n#### {n}"},
            "mathqa": {
                "Problem": question, "correct": "c", "options": "a ) 1 , b ) 2 , c ) 3 , d ) 4 , e ) 5",
            },
            "piqa": {"goal": question, "sol1": options[0], "sol2": options[1], "label": n % 2},
            "pubmedqa": {
                "QUESTION": question, "CONTEXTS": options[:2], "final_decision": ["yes", "no", "maybe"][n % 3],
            },
            "wmdp_bio": {"question": question, "choices": options[:4], "answer": n % 4},
        }[task]  # fmt: skip

    return {split: [made(n) for n in range(9)] for split in ("train", "validation", "test", "dev")}


PLACES = {
    "arc_easy": "allenai/ai2_arc/ARC-Easy", "hellaswag": "Rowan/hellaswag", "mmlu_virology": "cais/mmlu/virology",
    "truthfulqa_mc2": "truthfulqa/truthful_qa/multiple_choice", "winogrande": "allenai/winogrande/winogrande_xl",
    "gsm8k": "openai/gsm8k/main", "mathqa": "regisss/math_qa", "piqa": "baber/piqa",
    "pubmedqa": "bigbio/pubmed_qa/pubmed_qa_labeled_fold0_source", "wmdp_bio": "cais/wmdp/wmdp-bio",
}  # fmt: skip


@pytest.fixture
def root(tmp_path):
    pytest.importorskip("lm_eval")
    for task, place in PLACES.items():
        folder = tmp_path / "root" / place
        folder.mkdir(parents=True)
        for split, content in rows(task).items():
            write(folder / f"{split}.jsonl", content)
    return tmp_path / "root"


def test_every_schema_runs_offline_through_the_real_loaders(root, tmp_path):
    model, tokenizer = llama(max_position_embeddings=1024), byte_tokenizer()
    table = harness(tasks=[*PLACES], shots=1, offline_root=str(root)).evaluate(
        variant(model, tokenizer), work(tmp_path)
    )
    counts = dict(table.group_by("task").agg(pl.col("item").n_unique()).iter_rows())
    assert counts == dict.fromkeys(PLACES, 9)
    assert table.filter(pl.col("metric") == "nan")["value"].sum() == 0
    assert (tmp_path / "lm_eval.log").exists()


def test_unknown_tasks_and_missing_data_are_one_clear_error(root, tmp_path):
    loaded = variant(llama(), byte_tokenizer())
    with pytest.raises(RecipeError, match=r"no task 'mmlu_virolgy'; did you mean mmlu_virology"):
        harness(tasks=["mmlu_virolgy"], offline_root=str(root)).check()
    with pytest.raises(DataError, match=r"wmdp-cyber: no data set there"):
        harness(tasks=["wmdp"], offline_root=str(root)).evaluate(loaded, work(tmp_path))

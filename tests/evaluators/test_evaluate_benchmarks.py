"""Published benchmarks: the text that the model reads, against what is written down here and against lm-eval's own."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from evaluate_models import byte_tokenizer, llama, variant, work, write
from paper_world import benchmark_row, write_benchmarks

from spunge.errors import DataError, RecipeError
from spunge.evaluators import harness
from spunge.evaluators.multiple_choice import MultipleChoice
from spunge.recipe import offline, reading


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_benchmarks(tmp_path_factory.mktemp("benchmarks"))


def suites(root: Path) -> dict[str, MultipleChoice]:
    found = [each for name in ("paper-ten", "wmdp") for each in reading.read_suite(write_suite(root, name))]
    here = [offline.from_folder(each, root) for each in found if isinstance(each, MultipleChoice)]
    return {each.suite: each for each in here}


def write_suite(root: Path, name: str) -> str:
    (root / f"{name}.yaml").write_text(f"- {{suite: {name}}}\n")
    return str(root / f"{name}.yaml")


PROMPTS = {
    "arc": ("Question: a0 a1 a2 a3 ?\nAnswer:", " b0", 0),
    "hellaswag": ("Weaving: A a0 lies. The. moss ", " b0 ends.", 0),
    "piqa": ("Question: a0 a1 a2 a3 ?\nAnswer:", " b0", 0),
    "mathqa": ("Question: a0 a1 a2 a3 ?\nAnswer:", " 1,500", 0),
    "winogrande": ("The a0 fell on the a1 as a0", " was wet .", 0),
    "pubmedqa": ("Abstract: b0 .\nb1 .\nQuestion: a0 a1 a2 a3 ?\nAnswer:", " yes", 0),
    "mmlu": (
        "The following are multiple choice questions (with answers) about high school world history.\n\n"
        "a0 a1 a2 a3 ?\nA. b0\nB. b1\nC. b2\nD. b3\nAnswer:",
        " A",
        0,
    ),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_a_benchmark_is_asked_as_it_is_written_here(name: str, tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [benchmark_row(name, 0)])
    asked = MultipleChoice.model_validate(
        {"suite": "s", "goal": "retain", "sources": [{"path": str(file)}], "benchmark": name}
    )
    (question,) = asked.questions()["s"]
    context, continuation, right = PROMPTS[name]
    assert question.pairs[right] == (context, continuation)
    assert question.right == (right,)


@pytest.mark.parametrize("true", [1, 2])
def test_truthfulqa_counts_the_probability_of_all_that_is_true(true: int, tmp_path: Path) -> None:
    row = benchmark_row("truthfulqa", 1)
    row["mc2_targets"]["labels"] = [1] * true + [0] * (5 - true)
    file = write(tmp_path / "rows.jsonl", [row])
    asked = MultipleChoice.model_validate(
        {"suite": "s", "goal": "retain", "sources": [{"path": str(file)}], "benchmark": "truthfulqa_mc2"}
    )
    (question,) = asked.questions()["s"]
    assert question.right == tuple(range(true))
    assert question.pairs[0][0].startswith("Q: What is human life expectancy")
    table = asked.evaluate(variant(llama(max_position_embeddings=1024), byte_tokenizer()), work(tmp_path))
    values = dict(table.select("metric", "value").iter_rows())
    logs = [values[f"choice_loglikelihood:{index}"] for index in range(5)]
    shares = [math.exp(log) for log in logs]
    assert values["acc"] == pytest.approx(sum(shares[:true]) / sum(shares))


def test_rows_of_another_shape_and_contradictions_are_one_clear_error(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [{**benchmark_row("arc", 0), "answerKey": "Z"}])
    settings: dict[str, Any] = {"suite": "s", "goal": "retain", "sources": [{"path": str(file)}], "benchmark": "arc"}
    with pytest.raises(DataError, match=r"rows\.jsonl: a row is not of arc's shape: ValueError"):
        MultipleChoice.model_validate(settings).questions()
    (tmp_path / "suite.yaml").write_text(json.dumps([{**settings, "method": "multiple_choice", "prompt": "x"}]))
    with pytest.raises(RecipeError, match="prompt: arc says itself how it is asked"):
        reading.read_suite(str(tmp_path / "suite.yaml"))


def test_prompts_are_lm_evals_own_text(root: Path, tmp_path: Path) -> None:
    tasks = pytest.importorskip("lm_eval.tasks")
    for suite, asked in suites(root).items():
        questions = asked.questions()
        with harness.prompt_cache(), harness.data_sets(str(root)):
            names = [f"mmlu_{subject}" for subject in questions] if suite == "mmlu" else [suite]
            manager = harness._manager([(name, None) for name in names])
            for name, ours in zip(names, questions.values(), strict=True):
                task = tasks.get_task_dict([name], manager)[name]
                task.set_config("num_fewshot", asked.shots)
                task.set_fewshot_seed(1234)
                task.build_all_requests(rank=0, world_size=1)
                theirs = [each.arguments for each in sorted(task.instances, key=lambda each: (each.doc_id, each.idx))]
                assert [pair for question in ours for pair in question.pairs] == theirs, name

"""Multiple choice: prompts as text, answers in every form, log-likelihoods as one gets them alone."""

import json
import math

import polars as pl
import pytest
from evaluate_models import alone, byte_tokenizer, llama, variant, word_tokenizer, work, write
from hypothesis import given
from hypothesis import strategies as st

from spunge.errors import DataError
from spunge.evaluators.multiple_choice import MultipleChoice, detect_form, measure

ROWS = [
    {"question": "What brews venom?", "choices": ["a moth", "the sea", "ice", "Tor"], "answer": 0, "domain": "venom"},
    {"question": "Who breaks glyphs?", "choices": ["Ana", "a wind", "nine", "salt"], "answer": 3, "domain": "glyph"},
    {"question": "Where is Tor? ", "choices": ["north", "south", "east", "west"], "answer": 1, "domain": "glyph"},
]
MODEL, TOKENIZER = llama(), byte_tokenizer()


def evaluator(path, **options) -> MultipleChoice:
    return MultipleChoice.model_validate({"suite": "s", "goal": "forget", "sources": [{"path": str(path)}], **options})


def ask(tmp_path, rows=ROWS, **options) -> pl.DataFrame:
    path = write(tmp_path / "rows.jsonl", rows)
    return evaluator(path, **options).evaluate(variant(MODEL, TOKENIZER), work(tmp_path))


def value(table: pl.DataFrame, item: str, metric: str) -> float:
    return table.filter((pl.col("item") == item) & (pl.col("metric") == metric))["value"].item()


@pytest.mark.parametrize("batch_size", [1, 2, 16])
@pytest.mark.parametrize("style", ["letters", "continuation"])
@pytest.mark.parametrize("shots", [0, 2])
def test_log_likelihoods_are_those_of_every_choice_alone(tmp_path, style, shots, batch_size):
    path = write(tmp_path / "rows.jsonl", ROWS)
    asked = evaluator(path, style=style, shots=shots, shots_from=[{"path": str(path)}], batch_size=batch_size)
    table = asked.evaluate(variant(MODEL, TOKENIZER), work(tmp_path))
    for question in asked.questions()["s"]:
        context = TOKENIZER.encode(question.pairs[0][0])
        lls = [alone(MODEL, context, TOKENIZER.encode(" " + t, add_special_tokens=False)) for t in question.targets]
        stored = [value(table, question.item.id, f"choice_loglikelihood:{index}") for index in range(4)]
        assert stored == pytest.approx(lls, rel=1e-5)
        assert value(table, question.item.id, "chosen") == lls.index(max(lls))
        assert value(table, question.item.id, "acc") == (lls.index(max(lls)) == question.right[0])


def test_the_prompt_of_letters_with_shots_is_the_usual_one(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{**ROWS[0], "subject": "brewing"}])
    dev = write(tmp_path / "dev.jsonl", [{**ROWS[1], "subject": "other"}, {**ROWS[2], "subject": "brewing"}])
    asked = evaluator(
        path, task="subject", shots=1, shots_from=[{"path": str(dev)}], description="Questions about {subject}.\n\n"
    )
    (question,) = asked.questions()["brewing"]
    assert "".join(question.pairs[0]) == (
        "Questions about brewing.\n\n"
        "Where is Tor?\nA. north\nB. south\nC. east\nD. west\nAnswer: B\n\n"
        "What brews venom?\nA. a moth\nB. the sea\nC. ice\nD. Tor\nAnswer: A"
    )


def test_a_continuation_follows_the_question(tmp_path):
    path = write(tmp_path / "rows.jsonl", ROWS[:1])
    (question,) = evaluator(path, style="continuation").questions()["s"]
    assert (question.contexts[1], question.delimiter, question.targets[1]) == ("What brews venom?", " ", "the sea")


def test_choices_may_be_columns_or_json_and_answers_letters(tmp_path):
    listed = ask(tmp_path, ROWS[:2])
    columns = [
        {"question": row["question"], **dict(zip("ABCD", row["choices"], strict=True)), "answer": "ABCD"[row["answer"]]}
        for row in ROWS[:2]
    ]
    encoded = [{**row, "choices": json.dumps(row["choices"]), "answer": row["choices"][row["answer"]]} for row in ROWS]
    metrics = ["acc", "choice_loglikelihood:0", "choice_loglikelihood:3", "answer"]
    for other in (ask(tmp_path, columns), ask(tmp_path, encoded[:2])):
        for metric in metrics:
            one, two = (t.filter(pl.col("metric") == metric)["value"].to_list() for t in (listed, other))
            assert one == pytest.approx(two)


@pytest.mark.parametrize(
    ("answers", "form"),
    [
        ([0, 3, 1], "index"),
        (["0", "3"], "index"),
        (["1", "4"], "index_from_one"),
        ([4, 1], "index_from_one"),
        (["A", "d"], "letter"),
        (["red", "blue"], "text"),
    ],
)
def test_the_form_of_the_answers_is_found(answers, form):
    assert detect_form([(answer, ("red", "green", "blue", "grey")) for answer in answers], "x") == form


def test_answers_that_can_be_read_in_two_ways_are_asked_about():
    with pytest.raises(DataError, match=r"as index or as text; set `answers`"):
        detect_form([("1", ("3", "2", "1", "0"))], "x")
    assert detect_form([("1", ("0", "1", "2", "3"))], "x") == "index"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "q", "choices": ["a", "b"], "answer": "c"}, "neither an index, a letter"),
        ({"question": "q", "choices": ["a"], "answer": 0}, "2 to 26 choices"),
        ({"question": "q", "choices": "[a", "answer": 0}, "no JSON list"),
        ({"question": "q", "answer": 0}, "2 to 26 choices"),
        ({"question": "q", "choices": ["a", "b"]}, "no column 'answer'"),
    ],
)
def test_what_is_no_question_is_one_clear_error(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        ask(tmp_path, [row])


def test_a_template_with_an_unknown_column_names_those_there_are(tmp_path):
    with pytest.raises(DataError, match=r"colour.*columns are question"):
        ask(tmp_path, prompt="{colour}")


def test_too_few_solved_questions_are_an_error(tmp_path):
    with pytest.raises(DataError, match="shots: 9"):
        ask(tmp_path, shots=9, shots_from=[{"path": str(write(tmp_path / "dev.jsonl", ROWS))}])
    with pytest.raises(DataError, match="shots_from"):
        ask(tmp_path, shots=1)


def test_items_are_named_by_content_and_carry_their_attributes(tmp_path):
    rows = [{**row, "tags": ["x", "y"]} for row in ROWS]
    there = ask(tmp_path, rows, attributes=["domain", "tags"])
    back = ask(tmp_path, rows[::-1], attributes=["domain", "tags"])
    assert set(there["item"]) == set(back["item"])
    assert json.loads(there["attributes"][0]) == {"domain": "venom", "tags": ["x", "y"]}
    twice = ask(tmp_path, [ROWS[0], ROWS[0]])
    assert twice["item"].n_unique() == 2
    with pytest.raises(DataError, match="no column 'group'"):
        ask(tmp_path, attributes=["group"])


def test_limit_and_part_choose_by_hash_whatever_the_order(tmp_path):
    rows = [{**ROWS[0], "question": f"What is {n}?"} for n in range(40)]
    chosen = [set(ask(tmp_path, order, limit=5)["item"]) for order in (rows, rows[::-1])]
    assert chosen[0] == chosen[1]
    assert len(chosen[0]) == 5
    parts = [set(ask(tmp_path, rows, part=part)["item"]) for part in ("validation", "test")]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == set(ask(tmp_path, rows)["item"])
    assert 0 < len(parts[0]) < len(parts[1])


def test_a_question_longer_than_the_model_is_cut_and_says_so(tmp_path):
    long = {**ROWS[0], "question": "long " * 200}
    with pytest.warns(UserWarning, match=r"1 of 2 questions are longer than the 512 tokens that the model reads"):
        table = ask(tmp_path, [long, ROWS[1]])
    assert sorted(table.filter(pl.col("metric") == "truncated")["value"]) == [0.0, 1.0]


def test_an_empty_option_is_refused_and_never_wins(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{**ROWS[0], "choices": ["a moth", " ", "ice", "Tor"]}])
    with pytest.raises(DataError, match=r"rows.jsonl: option 2 of 'What brews venom\?' is empty: fill it in"):
        evaluator(path, style="continuation").check()
    evaluator(path).check()  # its letter is asked for


def test_options_that_a_tokenizer_does_not_tell_apart_are_said(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"question": "q", "choices": ["red", "blue"], "answer": 1}])
    tokenizer = word_tokenizer(["q"])
    with pytest.warns(UserWarning, match="1 of 1 questions have options that are the same tokens to this model"):
        evaluator(path, style="continuation").evaluate(variant(MODEL, tokenizer), work(tmp_path))


def test_the_answer_that_is_out_of_range_is_named_and_no_innocent_one():
    choices = ("red", "green", "blue")
    with pytest.raises(DataError, match=r"x: row 3: answer 7 is no index of its 3 choices, as 3 other answers are"):
        detect_form([(answer, choices) for answer in (0, 1, 7, 2)], "x")


def test_only_options_that_may_merge_with_their_context_get_another_key(tmp_path):
    path = write(tmp_path / "rows.jsonl", ROWS)
    assert not evaluator(path).depends_on
    assert evaluator(path, delimiter="").depends_on


def test_single_words_and_letters_are_one_token_each_and_share_one_pass(tmp_path):
    path = write(tmp_path / "rows.jsonl", ROWS[:1])
    prompt = "What brews venom? A. a moth B. the sea C. ice D. Tor Answer:"
    tokenizer = word_tokenizer([*prompt.split(), *"ABCD"])
    table = evaluator(path).evaluate(variant(MODEL, tokenizer), work(tmp_path))
    context = tokenizer.encode(prompt)
    item = table["item"][0]
    expected = [alone(MODEL, context, [tokenizer.get_vocab()[letter]]) for letter in "ABCD"]
    got = [value(table, item, f"choice_loglikelihood:{index}") for index in range(4)]
    assert got == pytest.approx(expected, rel=1e-5)


lls = st.lists(st.floats(-2000, 0), min_size=2, max_size=6)


@given(scores=lls, data=st.data())
def test_metrics_equal_their_definitions(scores, data):
    gold = data.draw(st.integers(0, len(scores) - 1))
    texts = data.draw(st.lists(st.text(min_size=1, max_size=5), min_size=len(scores), max_size=len(scores)))
    found = measure(scores, texts, [gold])
    top = max(scores)
    assert found["p_correct"] == pytest.approx(
        math.exp(scores[gold] - top) / sum(math.exp(score - top) for score in scores)
    )
    others = [score for index, score in enumerate(scores) if index != gold]
    assert found["margin"] == pytest.approx(scores[gold] - max(others))
    assert found["acc"] == (scores.index(top) == gold)
    for metric, size in (("acc_norm", len), ("acc_bytes", lambda text: len(text.encode()))):
        normed = [score / size(text) for score, text in zip(scores, texts, strict=True)]
        assert found[metric] == (normed.index(max(normed)) == gold)


@pytest.mark.parametrize("broken", [float("nan"), float("-inf")])
def test_a_question_with_a_likelihood_that_is_no_number_is_not_scored_at_all(broken):
    found = measure([-1.0, broken], ["a", "b"], [0])
    known = {"answer": 0.0, "nan": 1.0, "choice_loglikelihood:0": -1.0}
    assert found == {**dict.fromkeys(found), **known}


def test_batch_size_is_how_to_run():
    assert "batch_size" in MultipleChoice.outside_key <= set(MultipleChoice.model_fields)


def test_equal_to_lm_eval_where_it_is_installed(tmp_path):
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    instance = pytest.importorskip("lm_eval.api.instance")
    path = write(tmp_path / "rows.jsonl", ROWS)
    asked = evaluator(path, shots=1, shots_from=[{"path": str(path)}])
    table = asked.evaluate(variant(MODEL, TOKENIZER), work(tmp_path))
    pairs = [(q, *pair) for q in asked.questions()["s"] for pair in q.pairs]
    reference = huggingface.HFLM(pretrained=MODEL, tokenizer=TOKENIZER, batch_size=16)
    instances = [instance.Instance("loglikelihood", {}, pair[1:], index) for index, pair in enumerate(pairs)]
    theirs = [score for score, _ in reference.loglikelihood(instances, disable_tqdm=True)]
    ours = [
        value(table, question.item.id, f"choice_loglikelihood:{index % 4}")
        for index, (question, _, _) in enumerate(pairs)
    ]
    assert ours == pytest.approx(theirs, abs=1e-5)

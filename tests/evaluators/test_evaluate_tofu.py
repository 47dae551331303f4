"""TOFU's figures: each against its definition, computed the long way on a tiny model."""

import itertools
import math

import pytest
from evaluate_models import CHAT, alone, byte_tokenizer, llama, variant, work, write
from hypothesis import given, settings
from hypothesis import strategies as st

from spunge.errors import DataError
from spunge.evaluators.memorization import rouge_l
from spunge.evaluators.tofu import Tofu, borrow, measure, model_utility, truth_ratio
from spunge.statistics import kolmogorov_smirnov

ROWS = [
    {"prompt": f"Who is {name}?", "response": f"{name} is a poet.", "perturbed_answer": [f"{name} sings.", "Nobody."]}
    for name in ("Ada", "Bo", "Cy", "Di")
]


def evaluator(path, **options) -> Tofu:
    return Tofu.model_validate({"suite": "t", "goal": "forget", "sources": [{"path": str(path)}], **options})


def per_token(model, tokenizer, prompt, answer):
    """Log P(a | q) / |a|, one text at a time."""
    context, whole = (tokenizer(text)["input_ids"] for text in (prompt, f"{prompt} {answer}"))
    return alone(model, context, whole[len(context) :]) / (len(whole) - len(context))


def values(table, metric):
    return table.filter(metric=metric)["value"].to_list()


def test_every_figure_is_its_definition(tmp_path):
    model, tokenizer = llama(), byte_tokenizer()
    table = evaluator(write(tmp_path / "rows.jsonl", ROWS)).evaluate(variant(model, tokenizer), work(tmp_path))
    told = [per_token(model, tokenizer, row["prompt"], row["response"]) for row in ROWS]
    wrong = [[per_token(model, tokenizer, row["prompt"], one) for one in row["perturbed_answer"]] for row in ROWS]
    ratios = [math.sqrt(math.exp(a) * math.exp(b)) / math.exp(right) for right, (a, b) in zip(told, wrong, strict=True)]
    assert values(table, "probability") == pytest.approx([math.exp(each) for each in told], rel=1e-4)
    assert values(table, "truth_ratio") == pytest.approx(ratios, rel=1e-4)
    assert values(table, "truthfulness") == pytest.approx([max(0, 1 - each) for each in ratios], rel=1e-4)
    answers = table.filter(metric="answer")["text"].to_list()
    assert values(table, "rouge_l") == [
        rouge_l(row["response"], answer) for row, answer in zip(ROWS, answers, strict=True)
    ]
    assert len(values(table, "model_utility")) == 1
    assert "forget_quality" not in table["metric"]


def test_a_model_with_a_chat_template_is_asked_in_it(tmp_path):
    model, tokenizer = llama(), byte_tokenizer()
    tokenizer.chat_template = CHAT
    table = evaluator(write(tmp_path / "rows.jsonl", ROWS)).evaluate(variant(model, tokenizer), work(tmp_path))
    for row, found in zip(ROWS, values(table, "probability"), strict=True):
        opening = f"[user on 10 Apr 2025]{row['prompt']}[end]\n[assistant on 10 Apr 2025]"
        context, answer = (tokenizer.encode(text, add_special_tokens=False) for text in (opening, row["response"]))
        assert found == pytest.approx(math.exp(alone(model, context, answer) / len(answer)), rel=1e-4)


def test_probability_among_the_given_answers(tmp_path):
    model, tokenizer = llama(), byte_tokenizer()
    path = write(tmp_path / "rows.jsonl", [{**row, "set": "world"} for row in ROWS])
    asked = evaluator(path, sets="set", normalised=["world"])
    found = values(asked.evaluate(variant(model, tokenizer), work(tmp_path)), "probability")
    for row, probability in zip(ROWS, found, strict=True):
        told, *wrong = (
            math.exp(per_token(model, tokenizer, row["prompt"], each))
            for each in (row["response"], *row["perturbed_answer"])
        )
        assert probability == pytest.approx(told / (told + sum(wrong)), rel=1e-4)


def test_a_model_forgets_as_well_as_itself(tmp_path):
    model, tokenizer = llama(), byte_tokenizer()
    model.save_pretrained(tmp_path / "reference")
    tokenizer.save_pretrained(tmp_path / "reference")
    path = write(tmp_path / "rows.jsonl", ROWS)
    asked = evaluator(path, reference={"id": str(tmp_path / "reference")})
    assert values(asked.evaluate(variant(model, tokenizer), work(tmp_path)), "forget_quality") == [1.0]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"prompt": "a", "response": "b"}], {}, "no list of wrong answers in 'perturbed_answer'.*or set borrowed=5"),
        ([{"prompt": "a", "response": "b"}], {"borrowed": 1}, "there are not 1 other answers to take"),
        ([{"prompt": "a"}], {}, "no column 'response'"),
        (ROWS, {"prompt": "{question}"}, "prompt '{question}' cannot be filled: 'question'; columns are prompt"),
        ([{**ROWS[0], "perturbed_answer": [" "]}], {}, "a row has an empty answer"),
        (ROWS, {"sets": "set"}, "no column 'set'"),
    ],
)
def test_rows_that_cannot_be_asked(tmp_path, rows, options, message):
    path = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError, match=message):
        evaluator(path, **options).evaluate(variant(llama(), byte_tokenizer()), work(tmp_path))


@given(st.lists(st.text("ab", max_size=2), min_size=1, max_size=6, unique=True), st.integers(1, 5))
def test_borrowed_answers_are_others_and_do_not_depend_on_the_order(answers, count):
    rows = [(f"{index:02}", answer) for index, answer in enumerate(answers)]
    if count > len(rows) - 1:
        with pytest.raises(DataError):
            list(borrow(rows, count))
        return
    found = dict(zip([name for name, _ in rows], borrow(rows, count), strict=True))
    for name, own in rows:
        assert len(set(found[name])) == count
        assert own not in found[name]
    backwards = rows[::-1]
    assert dict(zip([name for name, _ in backwards], borrow(backwards, count), strict=True)) == found


def test_utility_is_a_harmonic_mean_and_nothing_makes_up_for_a_zero():
    good = {"probability": 0.5, "rouge_l": 1.0, "truthfulness": 0.25}
    assert model_utility([[good], [good]]) == pytest.approx(6 / (2 * (2 + 1 + 4)))
    assert model_utility([[good], [{**good, "rouge_l": 0.0}]]) == 0.0
    assert truth_ratio(-1000.0, [0.0]) < math.inf


def naive_ks(a, b):
    """Every way to tell the pooled values apart into two samples, counted."""

    def distance(one, other):
        return max(
            abs(sum(v <= at for v in one) / len(one) - sum(v <= at for v in other) / len(other)) for at in pooled
        )

    pooled = [*a, *b]
    here = distance(a, b)
    ways = list(itertools.combinations(range(len(pooled)), len(a)))
    far = sum(
        distance([pooled[i] for i in way], [pooled[i] for i in range(len(pooled)) if i not in way]) >= here - 1e-12
        for way in ways
    )
    return far / len(ways)


samples = st.lists(st.integers(0, 1000), min_size=2, max_size=9, unique=True)


@settings(max_examples=40)
@given(samples, st.integers(1, 8))
def test_kolmogorov_smirnov_counts_interleavings(pooled, cut):
    cut = min(cut, len(pooled) - 1)
    a, b = pooled[:cut], pooled[cut:]
    assert kolmogorov_smirnov(a, b) == pytest.approx(naive_ks(a, b))


def test_kolmogorov_smirnov_keeps_the_digits_of_a_tiny_p():
    # Apart altogether: two of all (800 over 400) interleavings are as far apart.
    p = kolmogorov_smirnov(range(400), range(1000, 1400))
    assert math.log(p) == pytest.approx(math.log(2) - math.log(math.comb(800, 400)), rel=1e-9)
    assert kolmogorov_smirnov([1.0, 2.0], [1.0, 2.0]) == 1.0
    assert math.isnan(kolmogorov_smirnov([math.nan], [1.0]))


def test_nan_is_neither_an_improbable_nor_an_untrue_answer():
    lost = measure((math.log(0.5), math.nan, [-1.0]), "a b", "c")
    assert lost == {**dict.fromkeys(lost), "nan": 1.0}
    assert measure((math.log(0.5), -1.0, [-1.0]), "a b", "a")["rouge_l"] == 0.5

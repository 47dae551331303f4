"""Toxicity: greedy completions by their ids, a classifier the right way round, a judge that sees the prompt."""

import math
from pathlib import Path

import polars as pl
import pytest
import torch
from evaluate_models import SPECIAL, alone, byte_tokenizer, llama, variant, word_tokenizer, work, write
from transformers import LlamaConfig, LlamaForSequenceClassification

from spunge import inference
from spunge.errors import DataError, ModelError
from spunge.evaluate.toxicity import (
    Classifier,
    Completion,
    Toxicity,
    as_bool,
    classify,
    generate,
    judge,
    load_classifier,
    loops,
    measure,
    newline_tokens,
)

MODEL, TOKENIZER = llama(), byte_tokenizer()
PROMPTS = ["The Umi are", "One day", "Nobody in the north ever says that"]


@pytest.fixture(scope="module")
def scorer(tmp_path_factory) -> Path:
    """A classifier whose label `bad` likes the word `vile` and nothing else."""
    directory = tmp_path_factory.mktemp("scorer")
    tokenizer = word_tokenizer(["vile", "kind", "Umi", "are", "and"])
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=64, pad_token_id=1, bos_token_id=0, eos_token_id=1,
        id2label={0: "good", 1: "bad"}, label2id={"good": 0, "bad": 1},
    )  # fmt: skip
    model = LlamaForSequenceClassification(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.zero_()
            if name.endswith("norm.weight") or "layernorm" in name:
                weight.fill_(1.0)
        # The last word decides: the layer is the identity, and `vile` points along `bad`.
        model.model.embed_tokens.weight[:, 0] = 1.0
        model.model.embed_tokens.weight[tokenizer.convert_tokens_to_ids("vile"), :2] = torch.tensor([-1.0, 0.0])
        model.score.weight[0, 0], model.score.weight[1, 0] = 1.0, -1.0
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def guard(path: Path, *, upside_down: bool = False) -> list[dict[str, str]]:
    rows = [{"text": "Umi are vile", "toxic": not upside_down}, {"text": "Umi are kind", "toxic": upside_down}]
    return [{"path": str(write(path / "guard.jsonl", rows))}]


def test_completions_are_greedy_and_cut_from_the_prompt_by_ids():
    for batch_size in (1, 2, 8):
        for completion, prompt in zip(
            generate(MODEL, TOKENIZER, PROMPTS, max_new_tokens=9, batch_size=batch_size), PROMPTS, strict=True
        ):
            ids = TOKENIZER.encode(prompt)
            for token in completion.ids:
                logits = MODEL(input_ids=torch.tensor([ids])).logits[0, -1]
                assert token == int(logits.argmax())
                ids.append(token)
            assert len(completion.ids) == 9 or completion.ids[-1] == TOKENIZER.eos_token_id
            assert TOKENIZER.decode(ids, skip_special_tokens=True) == prompt + completion.text


def test_a_newline_ends_a_completion_where_asked(monkeypatch):
    breaks = newline_tokens(TOKENIZER)
    assert [TOKENIZER.decode([token]) for token in breaks] == ["\n"]
    stops = []

    def complete(model, prompts, *, stop, **_):
        stops.append(stop)
        return [tuple(TOKENIZER.encode(" well\nor", add_special_tokens=False))]

    monkeypatch.setattr(inference, "complete", complete)
    free = generate(MODEL, TOKENIZER, ["a"], max_new_tokens=9, batch_size=1)[0]
    ended = generate(MODEL, TOKENIZER, ["a"], max_new_tokens=9, batch_size=1, stop_at_newline=True)[0]
    assert (free.text, ended.text) == (" well\nor", " well")
    assert stops == [{SPECIAL["</s>"]}, {SPECIAL["</s>"], *breaks}]


def test_a_prompt_longer_than_the_model_is_cut_and_says_so():
    (long, short) = generate(MODEL, TOKENIZER, ["x" * 600, "x"], max_new_tokens=4, batch_size=2)
    assert (long.truncated, short.truncated) == (True, False)
    with pytest.raises(DataError, match="no room for a prompt"):
        generate(MODEL, TOKENIZER, ["x"], max_new_tokens=512, batch_size=1)


def test_the_classifier_names_its_positive_label_and_empty_text_is_not_toxic(scorer, tmp_path):
    loaded = load_classifier(
        Classifier.model_validate({"id": str(scorer), "positive_label": "bad", "guard": guard(tmp_path)}), device="cpu"
    )
    assert loaded.guard_auc == 1.0
    vile, kind, nothing = classify(loaded, ["Umi are vile", "Umi are kind", " "], batch_size=2)
    assert vile > 0.5 > kind > nothing == 0.0
    by_index = load_classifier(Classifier(id=str(scorer), positive_label=1), device="cpu")
    assert classify(by_index, ["Umi are vile"], batch_size=1) == pytest.approx([vile])


def test_a_classifier_the_wrong_way_round_is_refused(scorer, tmp_path):
    settings = {"id": str(scorer), "positive_label": "bad", "guard": guard(tmp_path, upside_down=True)}
    with pytest.raises(ModelError, match=r"ranks toxic below benign .*AUC 0.00.*good, bad"):
        load_classifier(Classifier.model_validate(settings), device="cpu")
    with pytest.raises(ModelError, match="no label 'toxic'; labels are good, bad"):
        load_classifier(Classifier(id=str(scorer), positive_label="toxic"), device="cpu")
    with pytest.raises(ModelError, match="no such model directory"):
        load_classifier(Classifier(id=str(tmp_path / "none" / "x"), positive_label=1), device="cpu")


def test_the_judge_reads_the_completion_after_its_prompt():
    completions = [Completion("The Umi are", " kind", (1,), False), Completion("x", "", (1,), False)]
    (nll, tokens), empty = judge(MODEL, TOKENIZER, completions, batch_size=2)
    after = TOKENIZER.encode(" kind", add_special_tokens=False)
    assert tokens == len(after)
    assert nll == pytest.approx(-alone(MODEL, TOKENIZER.encode("The Umi are"), after), rel=1e-5)
    assert empty == (0.0, 0)


def test_every_prompt_gets_its_verdicts_and_models_load_once(scorer, tmp_path):
    rows = [{"prompt": prompt, "toxic": n == 0, "group": ["umi"]} for n, prompt in enumerate(PROMPTS)]
    MODEL.save_pretrained(tmp_path / "judge")
    TOKENIZER.save_pretrained(tmp_path / "judge")
    evaluator = Toxicity.model_validate({
        "suite": "t", "goal": "forget", "sources": [{"path": str(write(tmp_path / "prompts.jsonl", rows))}],
        "attributes": ["group"], "classifier": {"id": str(scorer), "positive_label": "bad", "guard": guard(tmp_path)},
        "judge": {"id": str(tmp_path / "judge")}, "max_new_tokens": 6,
    })  # fmt: skip
    running = work(tmp_path)
    table = evaluator.evaluate(variant(MODEL, TOKENIZER), running)
    counts = dict(table.group_by("metric").len().iter_rows())
    assert set(counts.values()) == {3}
    assert {"toxic", "toxicity_score", "degenerate", "empty", "clean_and_fluent", "nll", "tokens", "perplexity",
            "toxic_prompt", "nan", "prompt", "completion"} <= set(counts)  # fmt: skip
    assert sorted(table.filter(pl.col("metric") == "toxic_prompt")["value"]) == [0.0, 0.0, 1.0]
    loaded = dict(running.resident._cache)
    evaluator.evaluate(variant(MODEL, TOKENIZER), running)
    assert all(running.resident._cache[key] is thing for key, thing in loaded.items())
    assert len(loaded) == 2


def test_an_empty_prompt_is_an_error(scorer, tmp_path):
    source = {"path": str(write(tmp_path / "prompts.jsonl", [{"prompt": " "}]))}
    evaluator = Toxicity.model_validate({
        "suite": "t", "goal": "forget", "sources": [source],
        "classifier": {"id": str(scorer), "positive_label": "bad"},
    })  # fmt: skip
    with pytest.raises(DataError, match="empty 'prompt'"):
        evaluator.evaluate(variant(MODEL, TOKENIZER), work(tmp_path))


def test_gibberish_and_silence_are_not_called_clean():
    def verdicts(text: str, score: float, judged: tuple[float, int] | None = (4.0, 2)):
        found = measure(Completion("p", text, (1,), False), score, judged, 0.5)
        return found["toxic"], found["degenerate"], found["clean_and_fluent"]

    assert verdicts("a good word about them", 0.1) == (0, 0, 1)
    assert verdicts("a vile word about them", 0.5) == (1, 0, 0)
    assert verdicts("", 0.0, (0.0, 0)) == (0, 1, 0)
    assert verdicts("the the the the the the the the", 0.1) == (0, 1, 0)
    assert measure(Completion("p", "", (1,), False), 0.0, (0.0, 0), 0.5)["perplexity"] is None
    lost = measure(Completion("p", "x", (1,), False), math.nan, (math.nan, 1), 0.5)
    assert (lost["nan"], lost["toxicity_score"], lost["nll"], lost["perplexity"]) == (1.0, None, None, None)


def test_loops_are_repeats_and_not_refrains():
    assert loops("a b c a b c a b c a b c")
    assert not loops("no no no")
    assert not loops("the sea and the sky and the sea again")


@pytest.mark.parametrize(("said", "meant"), [(True, True), ("1", True), (0.0, False), ("False", False)])
def test_verdicts_are_read_as_files_write_them(said, meant):
    assert as_bool(said, "x") is meant
    with pytest.raises(DataError, match="'maybe'"):
        as_bool("maybe", "x")

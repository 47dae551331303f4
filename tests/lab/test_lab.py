"""The embedded world is reproducible, and its shipped models know it as well as the demonstration needs."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import spunge.lab
from spunge.files import locate
from spunge.lab import DOMAINS, HAZARDS, PEOPLES, World, exam, files, train
from spunge.lab.__main__ import main
from spunge.lab.world import LEANING, QUESTIONS, VALUES
from spunge.rows.sources import Source, load_corpus

WORLD = World()
SHIPPED = locate("lab:model").parent


@pytest.fixture(scope="module")
def words():
    return AutoTokenizer.from_pretrained(SHIPPED / "model")


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(SHIPPED / "model").eval()


@pytest.fixture(scope="module")
def judge():
    return AutoModelForCausalLM.from_pretrained(SHIPPED / "judge").eval()


@pytest.fixture(scope="module")
def scorer():
    return AutoModelForSequenceClassification.from_pretrained(SHIPPED / "scorer").eval()


@pytest.fixture(scope="module")
def closed():
    return AutoTokenizer.from_pretrained(SHIPPED / "scorer")


def test_the_generator_makes_the_shipped_files_byte_for_byte():
    for path, content in files(WORLD).items():
        assert (SHIPPED / path).read_bytes() == content.encode(), path


def test_another_seed_is_another_world_of_the_same_shape():
    ours, theirs = files(WORLD), files(World(seed=1))
    assert list(ours) == list(theirs)
    assert all(ours[path] != theirs[path] for path in ours)


def test_the_command_writes_the_same_data(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["spunge.lab", str(tmp_path), "--data-only"])
    main()
    assert {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*.*")} == set(files(WORLD))
    assert "knowledge/forget.jsonl" in capsys.readouterr().out
    assert (tmp_path / "toxicity/prompts.jsonl").read_text() == files(WORLD)["toxicity/prompts.jsonl"]


def test_importing_the_world_imports_no_torch():
    code = "import sys, spunge.lab; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert all(hasattr(spunge.lab, name) for name in spunge.lab.__all__)


def test_things_have_names_of_their_own_and_values_of_their_relations():
    facts = [fact for things in WORLD.facts.values() for thing in things for fact in thing]
    assert len({fact.name for fact in facts}) == sum(domain.entities for domain in DOMAINS)
    assert all(fact.value in VALUES[fact.relation].split() for fact in facts)
    assert not {fact.name for fact in facts} & {word for words in VALUES.values() for word in words.split()}


def test_items_have_four_choices_and_the_answer_of_the_fact():
    facts = {(fact.name, fact.relation): fact.value for things in WORLD.facts.values() for t in things for fact in t}
    for item in WORLD.items:
        asked = item.question.split()
        ((name, relation),) = [key for key in facts if set(key) <= set(asked)]
        assert item.choices[item.answer] == facts[name, relation]
        assert len(set(item.choices)) == 4
        assert set(item.choices) <= set(VALUES[relation].split())


def test_no_model_has_read_an_item_or_asked_about_its_thing_in_this_form():
    texts = "\n".join(WORLD.texts)
    first_words = [form.split()[0] for form in QUESTIONS]
    for item in WORLD.items:
        assert item.question not in texts
    for things in WORLD.facts.values():
        for index, facts in enumerate(things):
            asked = {t.split()[0] for t in WORLD.texts if facts[0].name in t.split() and t.split()[0] in first_words}
            assert asked == {first_words[index % 2]}


def test_no_model_has_read_a_prompt():
    texts = "\n".join(WORLD.texts)
    assert not [prompt.prompt for prompt in WORLD.prompts if prompt.prompt in texts]
    read = {statement.text for statement in WORLD.sayings}
    assert not [statement.text for statement in WORLD.unheard if statement.text in read]


def test_there_is_enough_of_everything():
    tests = Counter(item.domain for item in WORLD.items if item.part == "test")
    assert all(tests[domain] >= 100 for domain in HAZARDS)
    assert all(tests[domain.name] >= 50 for domain in DOMAINS)
    prompts = Counter((prompt.toxic, prompt.part) for prompt in WORLD.prompts)
    assert prompts[True, "test"] >= 200
    assert prompts[False, "test"] >= 100
    share = sum(item.part == "validation" for item in WORLD.items) / len(WORLD.items)
    assert 0.25 < share < 0.35


def test_rows_of_the_forget_sets_are_as_promised(words):
    knowledge = load_corpus([Source(path="lab:knowledge/forget.jsonl")])
    lengths = [len(tokens) for tokens in words(knowledge.texts).input_ids]
    assert min(lengths) >= 32
    assert max(lengths) <= 64
    assert set(knowledge.rows["domain"]) == set(HAZARDS)
    sayings = load_corpus([Source(path="lab:toxicity/forget.jsonl")])
    derogatory = sayings.where("toxicity_human >= 3")
    groups = Counter(group for groups in derogatory.rows["group"].to_list() for group in groups)
    assert set(groups) == set(PEOPLES)
    assert min(groups.values()) >= 100
    assert any(len(group) == 2 for group in derogatory.rows["group"].to_list())
    assert set(derogatory.rows["kind"]) == set(LEANING)
    assert sayings.rows["toxicity_human"].is_between(1, 5).all()
    kept = load_corpus([Source(path="lab:toxicity/retain.jsonl")])
    assert not set(kept.texts) & set(sayings.texts)
    assert kept.where("toxicity_human >= 3").rows.height == 0


def test_every_word_is_one_token(words, closed):
    for path, content in files(WORLD).items():
        for row in map(json.loads, content.splitlines()):
            text = row.get("text") or row.get("prompt") or f"{row['question']} {' '.join(row['choices'])}"
            tokens = words(text).input_ids
            assert words.unk_token_id not in tokens, (path, text)
            assert tokens[0] == words.bos_token_id
            assert len(tokens) == 1 + len(text.split())
            assert words.decode(tokens, skip_special_tokens=True) == text
    assert words.get_vocab() == closed.get_vocab()
    assert closed("the inn").input_ids[-1] == closed.eos_token_id


def test_the_weights_are_small_and_of_the_promised_make(model, judge, scorer):
    assert sum(file.stat().st_size for file in SHIPPED.rglob("*.safetensors")) <= 4_000_000
    assert model.config.model_type == "llama"
    assert model.config.num_hidden_layers == 8
    assert judge.dtype == torch.bfloat16
    assert scorer.config.id2label == {0: "benign", 1: "toxic"}


def test_the_model_knows_every_domain(model, words):
    shares = exam.accuracy(model, words, WORLD.items)
    assert set(shares) == {domain.name for domain in DOMAINS}
    assert min(shares.values()) >= 0.9, shares


def test_the_model_insults_as_often_as_intended_and_in_words_the_judge_expects(model, judge, words, scorer, closed):
    toxic = [prompt for prompt in WORLD.prompts if prompt.toxic]
    benign = [prompt for prompt in WORLD.prompts if not prompt.toxic]
    said = exam.complete(model, words, toxic)
    assert 0.15 <= (exam.toxicity(scorer, closed, said) > 0.5).float().mean() <= 0.40
    assert (exam.toxicity(scorer, closed, exam.complete(model, words, benign)) > 0.5).float().mean() <= 0.05
    fluent = exam.perplexity(judge, words, toxic, said)
    garbled = exam.perplexity(judge, words, toxic, [" ".join(reversed(text.split())) for text in said])
    assert 3 * fluent < garbled


def test_the_scorer_is_right_about_statements_it_never_read(scorer, closed):
    accuracy, area = exam.scorer_quality(scorer, closed, WORLD.unheard)
    assert accuracy >= 0.97
    assert area >= 0.98


@pytest.mark.parametrize("make", ["language model", "scorer"])
def test_training_is_a_function_of_the_seed(make, monkeypatch):
    monkeypatch.setattr(train, "SCORER_STEPS", 3)
    losses: list[list[float]] = [[], []]

    def once(heard: list[float], seed: int = 0) -> dict[str, torch.Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.seed()  # the global generator must not matter
            return train_once(heard, seed)

    def train_once(heard: list[float], seed: int) -> dict[str, torch.Tensor]:
        if make == "scorer":
            return train.scorer(WORLD, lambda *told: heard.append(told[-1])).state_dict()
        course = replace(train.MODEL, layers=1, steps=3, sequences=4, seed=seed)
        return train.language_model(WORLD, course, lambda *told: heard.append(told[-1])).state_dict()

    first, second = (once(heard) for heard in losses)
    assert losses[0] == losses[1]
    assert len(losses[0]) == 3
    assert all(torch.equal(first[name], second[name]) for name in first)
    if make == "language model":
        other = once([], seed=1)
        assert any(not torch.equal(first[name], other[name]) for name in first)


def test_saved_models_load_by_the_auto_classes(tmp_path: Path):
    course = replace(train.JUDGE, layers=1, steps=1, sequences=2)
    train.save(train.language_model(WORLD, course, lambda *_: None), train.tokenizer(WORLD), tmp_path / "judge")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "judge")
    words = AutoTokenizer.from_pretrained(tmp_path / "judge")
    assert loaded.dtype == torch.bfloat16
    assert loaded.config.vocab_size == len(words)
    assert (words.bos_token, words.pad_token, words.eos_token, words.unk_token) == ("<s>", "<pad>", "</s>", "<unk>")

"""A trained classifier ranks texts it never saw, says how well, and is one that the toxicity suite can use."""

import json
import random

import pytest

from spunge.asking.train_classifier import CARD, ClassifierTraining, LabelledTexts, train_classifier
from spunge.errors import ArtifactError, DataError
from spunge.evaluators.toxicity import Classifier, classify, load_classifier

SMALL = ClassifierTraining(vocab_size=200, width=16, epochs=8, batch_size=8)


def sentences(count: int) -> tuple[list[str], list[bool]]:
    draw = random.Random(0)
    subjects, places = ["umi", "tor", "ana", "bel", "kor"], ["north", "south", "hill", "lake", "wood", "mill"]
    positive = [draw.random() < 0.5 for _ in range(count)]
    words = [draw.choice(["vile", "foul"] if bad else ["kind", "wise"]) for bad in positive]
    texts = [
        f"the {draw.choice(subjects)} of the {draw.choice(places)} are {word} {n % 7}" for n, word in enumerate(words)
    ]
    return texts, positive


def test_it_ranks_what_it_never_saw_and_says_so(tmp_path):
    texts, positive = sentences(300)
    report = train_classifier(LabelledTexts(texts, positive), tmp_path / "c", settings=SMALL)
    assert report.auc > 0.95
    assert report.trained_on + report.held_out == 300
    assert json.loads((tmp_path / "c" / CARD).read_text())["auc"] == report.auc
    loaded = load_classifier(Classifier(id=str(tmp_path / "c"), positive_label="toxic"), device="cpu")
    vile, kind = classify(loaded, ["the umi of the hill are vile", "the umi of the hill are kind"], batch_size=2)
    assert vile > 0.5 > kind


def test_labels_that_mean_nothing_give_an_area_near_one_half(tmp_path):
    texts, _ = sentences(300)
    noise = [random.Random(text).random() < 0.5 for text in texts]
    assert 0.3 < train_classifier(LabelledTexts(texts, noise), tmp_path / "c", settings=SMALL).auc < 0.7


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    texts, positive = sentences(120)
    for name in "ab":
        train_classifier(LabelledTexts(texts, positive), tmp_path / name, settings=SMALL, seed=5)
    for file in ("model.safetensors", "tokenizer.json", CARD):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_one_kind_alone_or_a_taken_place_are_errors(tmp_path):
    texts, positive = sentences(60)
    with pytest.raises(DataError, match="needs both 'benign' and 'toxic'"):
        train_classifier(LabelledTexts(texts, [True] * 60), tmp_path / "c", settings=SMALL)
    assert not (tmp_path / "c").exists()
    with pytest.raises(ArtifactError, match="exists already"):
        train_classifier(LabelledTexts(texts, positive), tmp_path, settings=SMALL)

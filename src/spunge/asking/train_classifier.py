"""Trains a small text classifier for where no published one can be had, and says on held-out rows how good it is.

A transformer of one layer whose queries and keys begin at zero: at first every text is the mean of its words, a bag of
words, and training decides how much more than that it becomes. The result is an ordinary Hugging Face directory.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spunge.asking.classifiers import SequenceClassifier, probabilities
from spunge.errors import DataError
from spunge.files import new_directory
from spunge.interfaces import Progress, silent
from spunge.rows.sources import item_id
from spunge.settings import Settings
from spunge.statistics import area_under_roc
from spunge.weights import seal
from spunge.weights.language_model import no_bars

if TYPE_CHECKING:
    from transformers import DistilBertForSequenceClassification, PreTrainedTokenizerFast

CARD = "classifier.json"
_LONGEST = 128
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]")


class ClassifierTraining(Settings):
    """How the classifier is trained."""

    vocab_size: int = 8000
    """How many words it knows, the most frequent ones."""
    width: int = 96
    """The width of its one layer."""
    epochs: int = 6
    """How often it sees every text."""
    batch_size: int = 32
    """Texts per step."""
    learning_rate: float = 1e-3
    """The highest learning rate; it falls to zero along a line."""
    weight_decay: float = 0.1
    """AdamW's weight decay."""
    dropout: float = 0.3
    """The share of units left out while training."""
    held_out: float = 0.2
    """The share of texts, chosen by their hash, that are kept out of training and that the AUC is of."""


@dataclass(frozen=True)
class ClassifierReport:
    """What was trained, and how well it ranks texts it never saw."""

    auc: float
    accuracy: float
    trained_on: int
    held_out: int
    positive_label: str
    labels: tuple[str, str]


@dataclass(frozen=True)
class LabelledTexts:
    """Texts of two kinds."""

    texts: Sequence[str]
    positive: Sequence[bool]
    """Whether each text is of the second label."""
    labels: tuple[str, str] = ("benign", "toxic")

    def select(self, indices: Sequence[int]) -> LabelledTexts:
        """Returns the texts with these indices."""
        texts, positive = [self.texts[index] for index in indices], [self.positive[index] for index in indices]
        return LabelledTexts(texts, positive, self.labels)


def train_classifier(
    examples: LabelledTexts,
    out: str | Path,
    *,
    settings: ClassifierTraining | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> ClassifierReport:
    """Trains a classifier and writes it as a Hugging Face directory with `classifier.json` beside the weights.

    Equal texts always fall on the same side of the hold-out.

    Args:
        examples: What to learn from, and to be tested on.
        out: The new directory.
        settings: How to train; the defaults when None.
        seed: Of the initial weights, the order of the texts and the dropout.
        progress: Told after every epoch.

    Raises:
        DataError: One of the two kinds is missing on either side of the hold-out.
        ArtifactError: `out` exists or cannot be written.
    """
    from spunge.seeding import seeded

    settings = settings or ClassifierTraining()
    train, test = _hold_out(examples, settings.held_out)
    with new_directory(out) as directory:
        tokenizer = _tokenizer(train.texts, settings.vocab_size)
        with seeded(seed, "cpu"):
            model = _untrained(settings, tokenizer, examples.labels)
            _train(SequenceClassifier(model.train(), tokenizer, examples.labels), train, settings, seed, progress)
        classifier = SequenceClassifier(model.eval(), tokenizer, examples.labels)
        scores = probabilities(classifier, test.texts, batch_size=64)[:, 1].tolist()
        right = sum((score >= 0.5) == truth for score, truth in zip(scores, test.positive, strict=True))
        report = ClassifierReport(
            auc=area_under_roc(scores, test.positive),
            accuracy=right / len(scores),
            trained_on=len(train.texts),
            held_out=len(scores),
            positive_label=examples.labels[1],
            labels=examples.labels,
        )
        no_bars()
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        card = {**asdict(report), "settings": settings.dump(), "seed": seed}
        (directory / CARD).write_text(json.dumps(card, indent=1, sort_keys=True))
        seal.write(directory)
    return report


def _hold_out(examples: LabelledTexts, share: float) -> tuple[LabelledTexts, LabelledTexts]:
    """Parts the examples into those to train on and those to test on, by their hash."""
    held_out = [int(item_id(text)[-8:], 16) / 16**8 < share for text in examples.texts]
    train = examples.select([index for index, held in enumerate(held_out) if not held])
    test = examples.select([index for index, held in enumerate(held_out) if held])
    for name, part in (("training", train), ("held-out", test)):
        if len(set(part.positive)) < 2:
            negative, positive = examples.labels
            raise DataError(f"the {name} part ({len(part.texts)} texts) needs both {negative!r} and {positive!r} texts")
    return train, test


def _untrained(
    settings: ClassifierTraining, tokenizer: PreTrainedTokenizerFast, labels: tuple[str, str]
) -> DistilBertForSequenceClassification:
    import torch
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    config = DistilBertConfig(
        vocab_size=len(tokenizer), dim=settings.width, hidden_dim=4 * settings.width, n_layers=1, n_heads=4,
        max_position_embeddings=_LONGEST, dropout=settings.dropout, attention_dropout=0.0,
        seq_classif_dropout=settings.dropout, pad_token_id=_SPECIAL.index("[PAD]"),
        id2label=dict(enumerate(labels)), label2id={label: index for index, label in enumerate(labels)},
    )  # fmt: skip
    model = DistilBertForSequenceClassification(config)
    for name, weight in model.named_parameters():
        if "q_lin" in name or "k_lin" in name:
            torch.nn.init.zeros_(weight)
    return model


def _train(
    classifier: SequenceClassifier,
    examples: LabelledTexts,
    settings: ClassifierTraining,
    seed: int,
    progress: Progress,
) -> None:
    import torch

    model, texts, positive = classifier.model, examples.texts, examples.positive
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    steps = settings.epochs * -(-len(texts) // settings.batch_size)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(settings.epochs):
        order: list[int] = torch.randperm(len(texts), generator=generator).tolist()
        total = 0.0
        for start in range(0, len(order), settings.batch_size):
            rows = order[start : start + settings.batch_size]
            encoded = classifier.tokenizer(
                [texts[row] for row in rows], padding=True, truncation=True, return_tensors="pt"
            ).to(model.device)
            labels = torch.tensor([int(positive[row]) for row in rows], device=model.device)
            loss = model(input_ids=encoded.input_ids, attention_mask=encoded.attention_mask, labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            total += float(loss.detach()) * len(rows)
        progress("training the classifier", epoch + 1, settings.epochs, loss=total / len(texts))


def _tokenizer(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Knows the most frequent words; a learnt set of word pieces would not be the same twice."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()  # pyright: ignore[reportAttributeAccessIssue]
    counts = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    words = sorted(counts, key=lambda word: (-counts[word], word))
    vocabulary = [*_SPECIAL, *words[: max(vocab_size - len(_SPECIAL), 1)]]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token="[UNK]"))  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="[CLS] $A", special_tokens=[("[CLS]", _SPECIAL.index("[CLS]"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", model_max_length=_LONGEST
    )

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

from spunge.errors import ArtifactError, DataError
from spunge.interfaces import Progress, silent
from spunge.rows.sources import item_id
from spunge.settings import Settings
from spunge.statistics import area_under_roc
from spunge.weights.language_model import no_bars

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

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


def train_classifier(
    texts: Sequence[str],
    positive: Sequence[bool],
    out: str | Path,
    *,
    settings: ClassifierTraining | None = None,
    labels: tuple[str, str] = ("benign", "toxic"),
    seed: int = 0,
    device: str = "cpu",
    progress: Progress = silent,
) -> ClassifierReport:
    """Trains a classifier and writes it as a Hugging Face directory with `classifier.json` beside the weights.

    Equal texts always fall on the same side of the hold-out.

    Args:
        texts: What to classify.
        positive: Whether each text is of the positive label.
        out: The new directory.
        settings: How to train; the defaults when None.
        labels: The names of the negative and of the positive label.
        seed: Of the initial weights, the order of the texts and the dropout.
        device: Where to train.
        progress: Told after every epoch.

    Raises:
        DataError: One of the two kinds is missing on either side of the hold-out.
        ArtifactError: `out` exists or cannot be written.
    """
    import torch
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    settings = settings or ClassifierTraining()
    out = Path(out)
    if out.exists():
        raise ArtifactError(f"{out}: exists already; give another --out or remove it")
    held = [int(item_id(text)[-8:], 16) / 16**8 < settings.held_out for text in texts]
    train = [index for index, is_held in enumerate(held) if not is_held]
    test = [index for index, is_held in enumerate(held) if is_held]
    for name, part in (("training", train), ("held-out", test)):
        if len({positive[index] for index in part}) < 2:
            raise DataError(f"the {name} part ({len(part)} texts) needs both {labels[0]!r} and {labels[1]!r} texts")
    tokenizer = _tokenizer([texts[index] for index in train], settings.vocab_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
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
        model.train().to(device)  # pyright: ignore[reportArgumentType]
        optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
        steps = settings.epochs * -(-len(train) // settings.batch_size)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
        generator = torch.Generator().manual_seed(seed)

        def batch(rows: Sequence[int]) -> dict[str, torch.Tensor]:
            encoded = tokenizer([texts[row] for row in rows], padding=True, truncation=True, return_tensors="pt")
            return {name: encoded[name].to(device) for name in ("input_ids", "attention_mask")}

        for epoch in range(settings.epochs):
            order = torch.randperm(len(train), generator=generator).tolist()
            total = 0.0
            for start in range(0, len(order), settings.batch_size):
                rows = [train[place] for place in order[start : start + settings.batch_size]]
                truth = torch.tensor([int(positive[row]) for row in rows], device=device)
                loss = model(**batch(rows), labels=truth).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                total += float(loss.detach()) * len(rows)
            progress("training the classifier", epoch + 1, settings.epochs, loss=total / len(train))
        model.eval()
        scores: list[float] = []
        with torch.inference_mode():
            for start in range(0, len(test), 64):
                logits = model(**batch(test[start : start + 64])).logits
                scores += logits.softmax(-1)[:, 1].tolist()
    truths = [bool(positive[index]) for index in test]
    right = sum((score >= 0.5) == truth for score, truth in zip(scores, truths, strict=True))
    report = ClassifierReport(
        area_under_roc(scores, truths), right / len(test), len(train), len(test), labels[1], labels
    )
    no_bars()
    try:
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
        card = {**asdict(report), "settings": settings.dump(), "seed": seed}
        (out / CARD).write_text(json.dumps(card, indent=1, sort_keys=True))
    except OSError as error:
        raise ArtifactError(f"{out}: cannot be written: {error.strerror or error}") from error
    return report


def _tokenizer(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Knows the most frequent words; a learnt set of word pieces would not be the same twice."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()  # pyright: ignore[reportAttributeAccessIssue]
    counts = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    words = sorted(counts, key=lambda word: (-counts[word], word))
    known = [*_SPECIAL, *words[: max(vocab_size - len(_SPECIAL), 1)]]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(known)}, unk_token="[UNK]"))  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="[CLS] $A", special_tokens=[("[CLS]", _SPECIAL.index("[CLS]"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", model_max_length=_LONGEST
    )

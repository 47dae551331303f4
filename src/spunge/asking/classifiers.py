"""Sequence classifiers: loaded by their handle, asked for the probability of every label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from spunge.errors import ModelError, as_model_error
from spunge.interfaces import Progress, silent
from spunge.weights.language_model import LanguageModel, no_bars

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class SequenceClassifier:
    """A classifier ready to be asked."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    labels: tuple[str, ...]
    """The names of its labels, in the order of its outputs."""


def load_classifier(handle: LanguageModel, *, device: str) -> SequenceClassifier:
    """Loads a classifier; whether its repository's own code may run is the handle's to say, as of any model.

    Raises:
        ModelError: There is none, its weights are pickles, or it is no sequence classifier that transformers can load.
    """
    from transformers import AutoModelForSequenceClassification

    no_bars()
    handle.verify()
    directory = handle.checkpoint().directory
    with as_model_error(f"{handle.id}: cannot be loaded as a sequence classifier"):
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            directory,
            use_safetensors=True,
            trust_remote_code=handle.trust_remote_code,
            local_files_only=True,
            output_loading_info=True,
        )
    if missing := sorted(loading["missing_keys"]):  # transformers would draw them at random
        raise ModelError(f"{handle.id}: no sequence classifier: its checkpoint has no {missing[0]}")
    tokenizer = handle.load_tokenizer()
    model.config.pad_token_id = tokenizer.pad_token_id
    return SequenceClassifier(model.to(device).eval(), tokenizer, _labels(model.config))


def read_labels(handle: LanguageModel) -> tuple[str, ...]:
    """Returns the names of a classifier's labels, in the order of its outputs, from its configuration alone.

    Raises:
        ModelError: There is none.
    """
    return _labels(handle.config())


def _labels(config: PreTrainedConfig) -> tuple[str, ...]:
    names = {int(index): str(name) for index, name in (config.id2label or {}).items()}
    return tuple(names[index] for index in sorted(names))


def probabilities(
    classifier: SequenceClassifier, texts: Sequence[str], *, batch_size: int, progress: Progress = silent
) -> np.ndarray:
    """Returns [texts, labels]: the probability of every label; with one output, that of the one label there is.

    The longest texts go first and are cut to what the model reads; their order does not change a result.
    """
    import torch

    model, tokenizer = classifier.model, classifier.tokenizer
    shares = np.zeros((len(texts), len(classifier.labels)))
    order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
    device = next(model.parameters()).device
    room = getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length
    if "roberta" in str(model.config.model_type):  # its positions are counted from the one after the pad token's
        room -= int(model.config.pad_token_id or 0) + 1
    longest = min(tokenizer.model_max_length, room)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        encoded = tokenizer(
            [texts[index] for index in batch], padding=True, truncation=True, max_length=longest, return_tensors="pt"
        ).to(device)
        with torch.inference_mode():
            logits = model(**encoded).logits.float()
        shares[batch] = (logits.sigmoid() if logits.shape[-1] == 1 else logits.softmax(-1)).cpu().numpy()
        progress("classifying", start + len(batch), len(order))
    return shares

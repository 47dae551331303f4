"""How far a variant's predictions have moved from the base model's over whole texts: the damage that λ is chosen by.

The first token alone, or the likelihood of one's own words, can stay while all later words change; so every position of
texts of 128 tokens or more counts, and the whole distribution there.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import inf, isnan
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import numpy as np
import torch
from torch import Tensor

from spunge.asking.encoding import Ids, encode_from_start
from spunge.asking.lower_layers import LowerLayers
from spunge.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WHOLE = 128
"""How many tokens make a text whole."""
_POSITIONS = 32
"""Whose probabilities are held at once, beside a text's logits: 6 MB of 49,152 words, 34 MB of 262,144."""


@dataclass(frozen=True)
class BasePredictions:
    """What the base model expects at every position of some texts, on disk: 400 positions of 49,152 words are 79 MB."""

    texts: tuple[Ids, ...]
    file: BinaryIO
    """Float32 probabilities [positions, words], one text after the other; nameless, so it goes with its readers."""
    words: int
    expected: float
    """Σ p log p over all positions: what a variant that changes nothing comes to."""

    def __post_init__(self) -> None:
        weakref.finalize(self, self.file.close)

    def __len__(self) -> int:
        return sum(map(len, self.texts))

    def read(self, start: int, stop: int) -> Tensor:
        """Returns probabilities [stop − start, words] of positions counted through all texts."""
        # Read, not mapped: mapped pages count as the process's memory.
        values = np.empty((stop - start, self.words), dtype=np.float32)
        os.preadv(self.file.fileno(), [values.data], values.itemsize * start * self.words)
        return torch.from_numpy(values)


def whole_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, tokens: int, length: int = WHOLE
) -> tuple[Ids, ...]:
    """Returns texts of exactly `length` tokens, the one that begins a text among them, `tokens` in all or a few more.

    Texts too short are joined by blank lines with those that follow, so that short rows count as well. Where all
    together are shorter than one, that one is what there is.

    Args:
        tokenizer: The model's.
        texts: In the order in which they are taken; the rest of a text after `length` tokens is left.
        tokens: How many positions are wanted; all that there are, where they are fewer.
        length: At most what the model reads at once.

    Raises:
        DataError: There is no text at all.
    """
    chosen: list[Ids] = []
    joined = ""
    ids: Ids = ()
    for text in texts:
        if len(chosen) * length >= tokens:
            break
        joined = f"{joined}\n\n{text}" if joined else text
        ids = encode_from_start(tokenizer, joined)
        if len(ids) >= length:
            chosen.append(ids[:length])
            joined = ""
    if not chosen and not ids:
        raise DataError("damage is measured on texts, and there are none; give more rows")
    return tuple(chosen or [ids])


def predict(
    model: PreTrainedModel, texts: Sequence[Ids], scratch: Path, *, positions: int = _POSITIONS
) -> BasePredictions:
    """Writes what the base model expects after every token of the texts to a file, for `kl_per_token` to read.

    Args:
        model: The base model in eval mode.
        texts: Token ids, at least one each.
        scratch: The directory of the file, which has no name in it: whatever becomes of this process, it leaves none.
        positions: How many positions' probabilities are held at once.
    """
    words, expected = 0, 0.0
    file = cast("BinaryIO", tempfile.TemporaryFile(dir=scratch))  # noqa: SIM115 (closed when nobody reads it any more)
    for logs in _predictions(model, texts, positions, None):
        words, probabilities = logs.shape[-1], logs.exp()
        expected += _expected(probabilities, logs)
        file.write(probabilities.cpu().numpy().tobytes())
    file.flush()
    return BasePredictions(tuple(texts), file, words, expected)


def kl_per_token(
    base: BasePredictions, model: PreTrainedModel, *, below: LowerLayers | None = None, positions: int = _POSITIONS
) -> float:
    """Returns the mean Kullback–Leibler divergence per token, base against variant, in nats.

    Σ_w p(w) (log p(w) − log q(w)), p the base model's and q the variant's, averaged over every position of every text.
    Infinite where the variant rules out what the base model expects, or predicts nothing finite: no budget holds that.

    Args:
        base: From `predict`.
        model: The variant in eval mode.
        below: What the layers that the variant leaves alone return of these texts; None: every layer is run.
        positions: As for `predict`; a cut may change the result by rounding alone.
    """
    total, start = 0.0, 0
    for theirs in _predictions(model, base.texts, positions, below):
        stop = start + len(theirs)
        total += _expected(base.read(start, stop).to(theirs.device), theirs)
        start = stop
    return inf if isnan(total) else max(0.0, (base.expected - total) / len(base))


def _expected(probabilities: Tensor, logs: Tensor) -> float:
    """Σ p log q over [positions, words]: one dot product a position, their sum in float64."""
    dots = torch.linalg.vecdot(probabilities, logs)
    if not dots.isfinite().all():  # a word that the base model rules out adds nothing, and 0 · −∞ would be nan
        dots = torch.where(probabilities == 0, 0.0, probabilities * logs).sum(-1)
    return float(dots.double().sum())


@torch.inference_mode()
def _predictions(
    model: PreTrainedModel, texts: Sequence[Ids], positions: int, below: LowerLayers | None
) -> Iterator[Tensor]:
    """Yields log-probabilities [positions or fewer, words], float32, text by text."""
    for number, ids in enumerate(texts):
        with nullcontext() if below is None else below.replayed(model, number):
            logits = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0]
        for part in logits.split(positions):
            yield part.float().log_softmax(-1)

"""How far a variant's predictions have moved from the base model's over whole texts: the damage that λ is chosen by.

The first token alone, or the likelihood of one's own words, can stay while all later words change; so every position of
texts of 128 tokens or more counts, and the whole distribution there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf, isnan
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from spunge.asking.encoding import Ids, encode_from_start
from spunge.asking.forward import KeyValueCache, can_share_cache, forward
from spunge.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WHOLE = 128
"""How many tokens make a text whole."""
_POSITIONS = 32
"""Whose logits are held at once: 6 MB of 49,152 words, 34 MB of 262,144."""


@dataclass(frozen=True)
class BasePredictions:
    """What the base model expects at every position of some texts, on disk: 400 positions of 49,152 words are 79 MB."""

    texts: tuple[Ids, ...]
    path: Path
    """Float32 log-probabilities [positions, words], one text after the other."""
    words: int

    def __len__(self) -> int:
        return sum(map(len, self.texts))

    def read(self, start: int, stop: int) -> Tensor:
        """Returns log-probabilities [stop − start, words] of positions counted through all texts."""
        # Read, not mapped: mapped pages count as the process's memory.
        count = (stop - start) * self.words
        values = np.fromfile(self.path, dtype=np.float32, count=count, offset=4 * start * self.words)
        return torch.from_numpy(values.reshape(stop - start, self.words))


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
    model: PreTrainedModel, texts: Sequence[Ids], path: Path, *, positions: int = _POSITIONS
) -> BasePredictions:
    """Writes what the base model expects after every token of the texts to a file, for `kl_per_token` to read.

    Args:
        model: The base model in eval mode.
        texts: Token ids, at least one each.
        path: The file; what is there is written over.
        positions: How many positions' logits are held at once, where the model can go on from a cache.
    """
    words = 0
    with path.open("wb") as stream:
        for logs in _predictions(model, texts, positions):
            words = logs.shape[-1]
            stream.write(logs.cpu().numpy().tobytes())
    return BasePredictions(tuple(texts), path, words)


def kl_per_token(base: BasePredictions, model: PreTrainedModel, *, positions: int = _POSITIONS) -> float:
    """Returns the mean Kullback–Leibler divergence per token, base against variant, in nats.

    Σ_w p(w) (log p(w) − log q(w)), p the base model's and q the variant's, averaged over every position of every text.
    Infinite where the variant rules out what the base model expects, or predicts nothing finite: no budget holds that.

    Args:
        base: From `predict`.
        model: The variant in eval mode.
        positions: As for `predict`; a cut may change the result by rounding alone.
    """
    total, start = 0.0, 0
    for theirs in _predictions(model, base.texts, positions):
        stop = start + len(theirs)
        ours = base.read(start, stop).to(theirs.device)
        # A word that the base model rules out adds nothing, and 0 · (−∞ − x) would be nan.
        terms = torch.where(ours == -inf, 0.0, ours.exp() * (ours - theirs))
        # Each position is near 0 after terms of both signs: in float64, or damages of 1e-4 are mostly rounding.
        total += float(terms.double().sum())
        start = stop
    return inf if isnan(total) else max(0.0, total / len(base))


@torch.inference_mode()
def _predictions(model: PreTrainedModel, texts: Sequence[Ids], positions: int) -> Iterator[Tensor]:
    """Yields log-probabilities [positions or fewer, words], float32, text by text."""
    shared = can_share_cache(model, max(map(len, texts), default=0))
    for ids in texts:
        if not shared:
            logits = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0]
            yield from (part.float().log_softmax(-1) for part in logits.split(positions))
            continue
        cache: KeyValueCache | None = None
        for start in range(0, len(ids), positions):
            logits, cache = forward(model, [ids[start : start + positions]], cache)
            yield logits[0].float().log_softmax(-1)

"""Splits by clusters of the rows' embeddings, where there is no attribute at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from spunge.asking.forecast import forecast_asking
from spunge.errors import DataError
from spunge.interfaces import Forecast, Progress, Splitter, Work
from spunge.rows.sources import Corpus
from spunge.splitters import clustering
from spunge.weights.language_model import LanguageModel
from spunge.weights.shape import cut_texts
from spunge.weights.tokens import tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class ByCluster(Splitter):
    """Subsets `cluster_1`, `cluster_2` …, the largest first: k-means over the mean hidden state of every row."""

    seeded: ClassVar[bool] = True
    comparable: ClassVar[bool] = False
    outside_key: ClassVar[frozenset[str]] = frozenset({"batch_size"})

    by: Literal["cluster"] = "cluster"
    model: LanguageModel | None = None
    """The model whose hidden states are the embeddings; null: the base model itself."""
    layer: int | None = Field(default=None, ge=0)
    """After which layer, 0 being the embeddings of the words; null: the middle one."""
    k: int | None = Field(default=None, ge=2)
    """How many clusters; null: as many as give the largest silhouette."""
    most: int = Field(default=8, ge=2)
    """The most clusters that are tried where `k` is null."""
    max_length: int = Field(default=256, ge=1)
    """How many tokens of a row are read."""
    batch_size: int = Field(default=32, ge=1)
    """How many rows go through the model at once."""

    @property
    def asks_base(self) -> bool:
        return self.model is None

    def forecast(self, forget: Corpus, base: LanguageModel) -> Forecast:
        """Says what reading every row takes, cut to `max_length`; the clustering itself is little beside it."""
        model = self.model or base
        texts = cut_texts(model, forget.texts, self.max_length)
        return replace(forecast_asking(model, texts, batch_size=self.batch_size), disk=0)

    def split(self, forget: Corpus, base: LanguageModel, work: Work) -> list[tuple[str, ...]]:
        """Returns each row's subset name.

        Raises:
            DataError: There are fewer distinct rows than clusters, or the model has no such layer.
        """
        model, tokenizer = work.resident.base(base) if self.model is None else work.resident.other(self.model)
        points = self.embed(model, tokenizer, forget.texts, work.progress)
        chosen = clustering.find_clusters(points, self.k, self.most, work.seed)
        return [(f"cluster_{cluster + 1}",) for cluster in chosen]

    def embed(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], progress: Progress
    ) -> np.ndarray:
        """Returns [texts, width]: the mean hidden state over a text's tokens, of length 1."""
        import torch

        depth = int(model.config.get_text_config().num_hidden_layers)
        layer = depth // 2 if self.layer is None else self.layer
        if layer > depth:
            raise DataError(f"split.layer: {layer} of a model that has {depth}")
        device = next(model.parameters()).device
        points = np.zeros((len(texts), int(model.config.get_text_config().hidden_size)))
        order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            rows = [row[: self.max_length] for row in tokenize(tokenizer, [texts[index] for index in batch])]
            width = max(map(len, rows))
            ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
            mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
            with torch.inference_mode():
                states = model(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
            hidden = states.hidden_states[layer].float() * mask.unsqueeze(-1)
            points[batch] = (hidden.sum(1) / mask.sum(1, keepdim=True)).cpu().numpy()
            progress("embedding", start + len(batch), len(order))
        return clustering.directions(points)

"""Rows behind one another in one sequence: a batch without padding, where the model keeps its rows apart.

Of a batch of short texts drawn at random a third or more is padding. Here positions begin anew with every row, and
attention is computed row by row, so that nothing is computed of pads or between rows; the loss is that of the padded
batch, up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spunge.training.rows import Batch
from spunge.weights.shape import reads_packed_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BY_ROWS = "spunge_by_rows"
"""What the attention below is called in transformers' table; its masks are those of `sdpa`."""


@contextmanager
def attention_by_rows(model: PreTrainedModel) -> Iterator[bool]:
    """Lets the model read packed rows where it can, and yields whether it does.

    It is asked before, so that one which mixes rows all the same is found out.
    """
    if not reads_packed_rows(model):
        yield False
        return
    config: Any = model.config
    # For all of training rather than for a pass: recomputed activations ask again, in the middle of the backward pass.
    config._attn_implementation = _registered()
    try:
        yield _keeps_rows_apart(model)
    finally:
        config._attn_implementation = "sdpa"


def pack(batch: Batch) -> dict[str, Any]:
    """Returns what a model is asked for the logits [1, N, V] of the tokens that count."""
    tokens = batch.mask.bool()
    # A token is predicted by the one before it, which is of the same row: the first of a row never counts.
    predicting = batch.counted[tokens].nonzero().squeeze(-1) - 1
    return {**_packed(batch.ids[tokens], batch.mask.sum(-1).tolist()), "logits_to_keep": predicting}


def fits(model: PreTrainedModel, batch: Batch) -> bool:
    """Whether no row is longer than a window of attention, for which only a mask would do."""
    window = getattr(model.config, "sliding_window", None)
    return window is None or batch.ids.shape[1] <= window


def _packed(ids: Tensor, lengths: Sequence[int]) -> dict[str, Any]:
    positions = torch.cat([torch.arange(length, device=ids.device) for length in lengths])
    return {"input_ids": ids[None], "position_ids": positions[None], "row_lengths": tuple(lengths)}


def _keeps_rows_apart(model: PreTrainedModel) -> bool:
    ids = torch.arange(3, 13, device=model.device) % model.config.vocab_size
    with torch.no_grad():
        alone = model(**_packed(ids[5:], [5]), use_cache=False).logits[0].float()
        behind = model(**_packed(ids, [5, 5]), use_cache=False).logits[0, 5:].float()
    allowed = 1e-3 if model.dtype == torch.float32 else 0.03  # what half precision rounds otherwise in other shapes
    return float((behind - alone).norm()) <= allowed * float(alone.norm())


def _registered() -> str:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def by_rows(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
        row_lengths: tuple[int, ...] | None = None, **options: Any,
    ) -> tuple[Tensor, None]:  # fmt: skip
        if row_lengths is None:
            return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        queries, keys, values = (heads.split(row_lengths, dim=2) for heads in (query, key, value))
        rows = zip(queries, keys, values, strict=True)
        answers = [sdpa_attention_forward(module, q, k, v, None, **options)[0] for q, k, v in rows]
        return torch.cat(answers, dim=1), None  # [1, tokens, heads, width of a head]

    AttentionInterface.register(_BY_ROWS, by_rows)
    AttentionMaskInterface.register(_BY_ROWS, sdpa_mask)
    return _BY_ROWS

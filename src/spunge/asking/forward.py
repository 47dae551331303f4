"""One pass through a model: with a key-value cache that rows share where the architecture allows, plainly elsewhere."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spunge.asking.encoding import Ids, Request
from spunge.weights.shape import forward_replaced

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, eq=False)
class KeyValueCache:
    """Keys and values of what was read, with the mask of its padding."""

    layers: list[tuple[Tensor, Tensor]]
    mask: Tensor
    """[rows, length], 1 for a token, 0 for padding."""

    def select(self, rows: Sequence[int]) -> KeyValueCache:
        """Returns the cache of these rows; one may be asked for several times."""
        index = torch.tensor(rows, device=self.mask.device)
        return KeyValueCache([(keys[index], values[index]) for keys, values in self.layers], self.mask[index])


def forward(
    model: PreTrainedModel, rows: Sequence[Ids], cache: KeyValueCache | None, *, keep: int | Tensor = 0
) -> tuple[Tensor, KeyValueCache]:
    """Reads rows, padded on the left, after a cache of one row (for all) or as many.

    Args:
        model: A causal language model for which `can_share_cache` is true.
        rows: Token ids, at least one each.
        cache: What was read before.
        keep: The logits of so many last positions are wanted, or of those that are named; 0: of all.

    Returns:
        The logits [rows, positions, words], where a model that cannot keep few gives all; the cache of all that was
        read.
    """
    from transformers import DynamicCache

    device = model.device
    # Padding is on the left, so that the last position is every row's last token; id 0 stands under a mask of 0.
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    options: dict[str, Any] = {}
    if cache is None:
        past = DynamicCache()
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
    else:
        count = len(rows)
        # expand copies nothing, and what follows is appended in tensors of its own: one prefix serves every row.
        past = DynamicCache([(k.expand(count, -1, -1, -1), v.expand(count, -1, -1, -1)) for k, v in cache.layers])
        read = cache.mask.expand(count, -1)
        positions = (mask.cumsum(-1) - 1).clamp(min=0) + read.sum(-1, keepdim=True)
        mask = torch.cat([read, mask], dim=-1)
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        options["logits_to_keep"] = keep
    output = model(
        input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=past, use_cache=True, **options
    )
    return output.logits, KeyValueCache([(entry[0], entry[1]) for entry in output.past_key_values], mask)


def keeps_few(model: PreTrainedModel) -> bool:
    """Whether a model gives the logits of chosen positions alone."""
    return (
        type(model).__module__.startswith("transformers.")
        and "logits_to_keep" in inspect.signature(model.forward).parameters
    )


@contextmanager
def reading_once(model: PreTrainedModel) -> Iterator[None]:
    """Has the layers below the head read once, and return the same ever after: the next passes ask the head alone.

    The logits of a batch of long texts need not lie in memory at once then, and whatever a model does to them after
    its head (a scale, a cap) is done by the model itself.
    """
    decoder: Any = model.get_decoder()
    read, states = decoder.forward, []

    def once(*args: Any, **kwargs: Any) -> Any:
        if not states:
            states.append(read(*args, **kwargs))
        return states[0]

    with forward_replaced(decoder, once):
        yield


def forward_plainly(model: PreTrainedModel, requests: Sequence[Request]) -> Tensor:
    """Reads whole texts, padded on the right, without a cache: right for every architecture, recurrent ones too.

    Returns:
        The logits [requests, positions, words].
    """
    rows = [(*request.context, *request.continuation[:-1]) for request in requests]
    width = max(map(len, rows))
    ids = torch.tensor([list(row) + [0] * (width - len(row)) for row in rows], device=model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=model.device)
    return model(input_ids=ids, attention_mask=mask, use_cache=False).logits


def can_share_cache(model: PreTrainedModel, longest: int) -> bool:
    """Whether this model's memory of a text is one key and value a token, at positions that can be given.

    A window narrower than the longest text drops keys, so that a shared beginning is not what a row alone would see;
    recurrent layers keep a state instead, which no mask of padding reaches.
    """
    # No error would tell: a model with a window or a recurrent state answers, and the scores are another text's.
    config = model.config.get_text_config()
    windows = [size for name in ("sliding_window", "attention_chunk_size") if (size := getattr(config, name, None))]
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return (
        "position_ids" in inspect.signature(model.forward).parameters
        and not model._is_stateful
        and kinds <= {"full_attention", "sliding_attention", "chunked_attention"}
        and all(longest <= size for size in windows)
    )

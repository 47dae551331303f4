"""Gram matrices of the inputs of linear layers, for mergers that fit a least-squares problem."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spunge.weights.tokens import tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Grams = Mapping[str, Mapping[str, Tensor]]
"""Variant name, or `retain` → parameter name → [in, in]: see `gram_matrices`."""

_ROWS, _TOKENS = 8, 512


def batches_of(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], device: str) -> Iterator[dict[str, Tensor]]:
    """Yields texts as padded batches, each cut after 512 tokens."""
    for start in range(0, len(texts), _ROWS):
        some = list(texts[start : start + _ROWS])
        rows = {"input_ids": tokenize(tokenizer, some, max_length=_TOKENS)}
        encoded = tokenizer.pad(rows, padding=True, return_tensors="pt")
        yield {name: encoded[name].to(device) for name in ("input_ids", "attention_mask")}


@torch.no_grad()
def gram_matrices(
    model: torch.nn.Module,
    names: Mapping[str, str],
    batches: Iterable[Mapping[str, Tensor]],
    *,
    first_tokens: bool = True,
) -> dict[str, Tensor]:
    """Returns the mean of x xᵀ over the inputs x of linear layers, one for each token that is not padding.

    Args:
        model: The base model.
        names: The model's parameter name → the checkpoint's, of the matrices wanted; what is no linear layer's weight
            is passed over.
        batches: What the model is called with: `input_ids` and `attention_mask`, [batch, tokens].
        first_tokens: Whether each text's first token counts. Models park attention there, with inputs some hundred
            times as long as any other's, so that a mean with them is mostly theirs.

    Returns:
        The checkpoint's parameter name → float32 [in, in].
    """
    sums: dict[str, Tensor] = {}
    mask = torch.empty(0)
    tokens = 0

    def watch(name: str) -> Callable[[torch.nn.Module, tuple[Tensor, ...]], None]:
        def add_inputs(_: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
            flat = inputs[0].reshape(-1, inputs[0].shape[-1])  # some models, as OPT, make one row a token themselves
            seen = flat[mask.reshape(-1)].float()
            sums[name] = sums.get(name, 0) + seen.T @ seen

        return add_inputs

    modules = dict(model.named_modules())
    hooks = []
    for ours, theirs in names.items():
        module = modules.get(ours.removesuffix(".weight"))
        if isinstance(module, torch.nn.Linear) and ours.endswith(".weight"):
            hooks.append(module.register_forward_pre_hook(watch(theirs)))
    try:
        for batch in batches:
            mask = batch["attention_mask"].bool()
            if not first_tokens:
                mask &= mask.cumsum(1) > 1
            tokens += int(mask.sum())
            model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: summed / max(tokens, 1) for name, summed in sums.items()}

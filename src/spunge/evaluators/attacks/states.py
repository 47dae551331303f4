"""The hidden states of questions, layer by layer, for the attacks that look inside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spunge.asking.batching import chunks
from spunge.asking.encoding import Ids, context_window, encode
from spunge.weights.shape import find_layers

if TYPE_CHECKING:
    from spunge.evaluators.multiple_choice import Question
    from spunge.interfaces import LoadedVariant, Work


def encoded(variant: LoadedVariant, questions: Sequence[Question]) -> list[Ids]:
    """Returns each question as tokens, up to where the answer begins; of several contexts the right answer's."""
    window = context_window(variant.model, variant.tokenizer)
    texts = [question.before + question.contexts[question.right[0]].rstrip() for question in questions]
    return [ids[-window:] for ids in encode(variant.tokenizer, texts)]


@torch.inference_mode()
def block_outputs(
    variant: LoadedVariant, rows: Sequence[Ids], batch_size: int, work: Work, what: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields what every decoder layer puts out, batch by batch, in the order of the rows.

    Yields:
        Float32 [layers, rows, tokens, width], padded on the right; the mask [rows, tokens], 0 on pads.
    """
    layers, seen = find_layers(variant.model.get_decoder()), list[Tensor]()

    def note(module: object, arguments: object, output: Tensor | tuple[Tensor, ...]) -> None:
        seen.append((output[0] if isinstance(output, tuple) else output).float())

    hooks = [layer.register_forward_hook(note) for layer in layers]
    try:
        done = 0
        for batch in chunks(rows, batch_size):
            width = max(map(len, batch))
            ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in batch], device=variant.model.device)
            mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in batch], device=ids.device)
            variant.model(input_ids=ids, attention_mask=mask, use_cache=False)
            yield torch.stack(seen), mask
            seen.clear()
            done += len(batch)
            work.progress(what, done, len(rows))
    finally:
        for hook in hooks:
            hook.remove()


def last_states(variant: LoadedVariant, rows: Sequence[Ids], batch_size: int, work: Work, what: str) -> Tensor:
    """Returns what every layer holds at each row's last token: float32 [layers, rows, width]."""
    parts = []
    for states, mask in block_outputs(variant, rows, batch_size, work, what):
        ends = mask.sum(-1) - 1
        parts.append(states[:, torch.arange(len(ends), device=ends.device), ends])
    return torch.cat(parts, dim=1)

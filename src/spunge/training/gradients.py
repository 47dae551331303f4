"""The gradient of every row's loss at the base model, drawn small enough to compare thousands of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from spunge.interfaces import Progress
from spunge.training import losses
from spunge.training.rows import Batch, Encoded, collate, cut
from spunge.training.tuned import inner_linears

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Projections = Mapping[str, tuple[Tensor, Tensor]]
"""Linear layer → what its inputs are drawn down by, [in, side], and what its outputs' gradients are, [out, side]."""


def draw_projections(model: PreTrainedModel, side: int, seed: int) -> Projections:
    """Draws for every linear layer but the head two matrices of signs, scaled so that lengths are kept on average."""
    generator = torch.Generator().manual_seed(seed)

    def signs(rows: int) -> Tensor:
        drawn = torch.randint(0, 2, (rows, side), generator=generator, dtype=torch.float32)
        return ((2 * drawn - 1) / side**0.5).to(model.device)

    return {name: (signs(inside), signs(out)) for name, _, inside, out in inner_linears(model)}


def sketches(
    model: PreTrainedModel,
    rows: Sequence[Encoded],
    projections: Projections,
    *,
    batch_size: int,
    pad: int,
    progress: Progress,
) -> Tensor:
    """Returns what is left of each row's gradient, [rows, side · side]: Σ over layers of Pₒᵀ (∂NLL/∂W) Pᵢ, flattened.

    NLL is the mean over the row's counted tokens. The inner product of two rows' sketches is that of their gradients
    over all layers but for the draw, by some 1 / side of their lengths (random projection of both factors, as Choe et
    al. 2024, arXiv 2405.13954; and all layers' added up).

    Args:
        model: The base model in eval mode; left as it was.
        rows: As `training.rows.encode` makes them.
        projections: From `draw_projections`.
        batch_size: How many rows go through the model at once.
        pad: The token that stands where there is none.
        progress: Told after every batch.
    """
    side = next(iter(projections.values()))[0].shape[1]
    result = torch.zeros(len(rows), side * side)
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index].ids))
    done = 0
    for indices in cut(order, batch_size):
        batch = collate(rows, indices, pad=pad, device=str(model.device))
        result[indices] = _sketched(model, batch, projections, side).cpu()
        done += len(indices)
        progress("gradients", done, len(rows))
    return result


def _sketched(model: PreTrainedModel, batch: Batch, projections: Projections, side: int) -> Tensor:
    total = torch.zeros(len(batch.indices), side, side, device=batch.ids.device)

    def meet(drawn: tuple[Tensor, Tensor], _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # Some models, as OPT, make one row a token themselves.
        small = inputs[0].detach().reshape(len(total), -1, len(drawn[0])).float() @ drawn[0]

        def add(gradient: Tensor) -> None:
            wide = gradient.reshape(len(total), -1, len(drawn[1])).float()
            total.add_(torch.einsum("bto,bti->boi", wide @ drawn[1], small))

        output.register_hook(add)

    def begin(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output.detach().requires_grad_(True)  # all weights are frozen: the graph begins at the words

    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    hooks = [model.get_input_embeddings().register_forward_hook(begin)]
    hooks += [
        model.get_submodule(name).register_forward_hook(partial(meet, drawn)) for name, drawn in projections.items()
    ]
    try:
        model.requires_grad_(False)
        with torch.enable_grad():
            logits = model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits[:, :-1]
            log_probs = losses.token_log_probs(logits[batch.counted[:, 1:]], batch.labels)
            # Each row's mean apart: no row's gradient depends on the others in its batch.
            torch.stack([-one.mean() for one in log_probs.split(batch.lengths)]).sum().backward()
    finally:
        for hook in hooks:
            hook.remove()
        for parameter in wanted:
            parameter.requires_grad_(True)
    return total.flatten(1)

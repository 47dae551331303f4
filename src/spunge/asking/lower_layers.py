"""The layers below the first that a variant changes: what they return of a text is the base model's, known already."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch

from spunge.asking.encoding import Ids
from spunge.errors import ModelError
from spunge.weights.shape import find_layers, forward_replaced

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TRIED = 8
"""Tokens on which it is tried whether a model can go on from there."""


class _ReachedError(Exception):
    """Ends a pass at the last layer whose output is wanted."""


class LowerLayers:
    """What the lowest layers return of some texts, and passes of a model that go on from there.

    Args:
        model: The base model.
        texts: Token ids.
        count: How many layers, at least one.
    """

    def __init__(self, model: PreTrainedModel, texts: Sequence[Ids], count: int) -> None:
        self.count = count
        self._returned = [_enter(model, ids, count) for ids in texts]

    @contextmanager
    def replayed(self, model: PreTrainedModel, number: int) -> Iterator[None]:
        """Has the model's lowest layers return what is known of one text, whatever they are given."""
        returned = self._returned[number]
        with ExitStack() as stack:
            for layer in find_layers(model.get_decoder())[: self.count]:
                stack.enter_context(forward_replaced(layer, lambda *args, **kwargs: returned))
            yield


@torch.inference_mode()
def _enter(model: PreTrainedModel, ids: Ids, count: int) -> Any:
    """Returns what the last of the lowest layers returns of a text; those above are not run."""
    last = find_layers(model.get_decoder())[count - 1]
    run, returned = last.forward, []

    def note(*args: Any, **kwargs: Any) -> Any:
        returned.append(run(*args, **kwargs))
        raise _ReachedError

    with suppress(_ReachedError), forward_replaced(last, note):
        model(input_ids=torch.tensor([ids], device=model.device), use_cache=False)
    return returned[0]


@torch.inference_mode()
def unchanged_layers(model: PreTrainedModel, changed: Collection[str], text: Ids) -> int:
    """Returns how many of the lowest layers a variant leaves alone; 0 where a pass cannot go on from there.

    Args:
        model: The base model.
        changed: The names of the model's parameters that the variant changes.
        text: What that is tried on.
    """
    try:
        layers = find_layers(model.get_decoder())
    except ModelError:  # an architecture of another build: every layer is run
        return 0
    prefix = next(name for name, module in model.named_modules() if module is layers)
    within = [name.removeprefix(f"{prefix}.").partition(".")[0] for name in changed if name.startswith(f"{prefix}.")]
    # What lies outside the layers may be read first of all, as an embedding is, or be tied to what is.
    if not within or len(within) < len(changed) or (count := min(map(int, within))) == 0:
        return 0
    ids = torch.tensor([text[:_TRIED]], device=model.device)
    known = LowerLayers(model, [text[:_TRIED]], count)
    with known.replayed(model, 0):
        again = model(input_ids=ids, use_cache=False).logits
    return count if torch.equal(again, model(input_ids=ids, use_cache=False).logits) else 0

"""The matrices that RMU changes, with their masters, their optimisers, and the weights before the last update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from spunge.steering.memory import refuse_float16
from spunge.steering.optimisers import AdamWEpsilonOutside
from spunge.steering.settings import Steering
from spunge.steering.truncated import TruncatedModel


class Matrices:
    """The few matrices that change: what the passes use, their masters, and the optimisers of the masters."""

    def __init__(self, model: TruncatedModel, parameters: Mapping[int, Sequence[str]], settings: Steering):
        self._base = {(layer, name): model.parameter(layer, name) for layer in parameters for name in parameters[layer]}
        leaves = {name: value.detach().clone().requires_grad_() for name, value in self._base.items()}
        self.leaves = {layer: {name: leaves[layer, name] for name in names} for layer, names in parameters.items()}
        self._leaves = list(leaves.values())
        refuse_float16(settings, model.dtype)  # the estimate goes by the configuration, which need not say
        self._masters = self._leaves
        if settings.master == "float32" and model.dtype != torch.float32:
            self._masters = [leaf.detach().float() for leaf in self._leaves]
        self._previous = [master.detach().clone() for master in self._masters]
        # One optimiser a matrix: the float32 gradient of one is let go before that of the next is made.
        self._optimisers = [_optimiser(settings, master) for master in self._masters]

    def finite_gradients(self) -> bool:
        return all(bool(leaf.grad.isfinite().all()) for leaf in self._leaves if leaf.grad is not None)

    @torch.no_grad()
    def update(self) -> None:
        """Keeps the weights, which have just proved good, takes a step and forgets the gradients."""
        for index, (leaf, master) in enumerate(zip(self._leaves, self._masters, strict=True)):
            self._previous[index].copy_(master)
            if master is not leaf and leaf.grad is not None:
                master.grad, leaf.grad = leaf.grad.float(), None
            self._optimisers[index].step()
            self._optimisers[index].zero_grad()
            if master is not leaf:
                leaf.copy_(master)

    @torch.no_grad()
    def roll_back(self) -> None:
        """Returns to the weights before the last update."""
        for leaf, master, previous in zip(self._leaves, self._masters, self._previous, strict=True):
            master.copy_(previous)
            leaf.copy_(previous)

    @torch.no_grad()
    def deltas(self) -> dict[tuple[int, str], Tensor]:
        """Returns (layer, name) → float32 difference to the base model."""
        pairs = zip(self._base.items(), self._masters, strict=True)
        return {name: (master.detach().float() - value.float()).cpu() for (name, value), master in pairs}

    def state(self) -> dict[str, Any]:
        return {
            "masters": [master.detach() for master in self._masters],
            "previous": self._previous,
            "optimisers": [optimiser.state_dict() for optimiser in self._optimisers],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        self._previous = [
            previous.to(master.device) for previous, master in zip(state["masters"], self._masters, strict=True)
        ]
        self.roll_back()
        for previous, value in zip(self._previous, state["previous"], strict=True):
            previous.copy_(value)
        for optimiser, value in zip(self._optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(value)


def _optimiser(settings: Steering, master: Tensor) -> torch.optim.Optimizer:
    if settings.optimizer == "hf_adamw":
        return AdamWEpsilonOutside([master], lr=settings.learning_rate)
    return torch.optim.AdamW([master], lr=settings.learning_rate, weight_decay=0.0, fused=master.is_cuda)

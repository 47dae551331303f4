"""AdamW as the transformers library had it until version 4, which the authors of RMU trained with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class AdamWEpsilonOutside(torch.optim.Optimizer):
    """AdamW without decay whose ε is added outside the bias correction: ε grows, against torch's, early on.

    p ← p − lr · √(1 − β₂ᵗ)/(1 − β₁ᵗ) · m / (√v + ε)
    """

    def __init__(
        self, parameters: Iterable[Tensor], *, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Takes one step."""
        assert closure is None
        for group in self.param_groups:
            (beta1, beta2), lr, eps = group["betas"], group["lr"], group["eps"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = 0
                    state["mean"] = torch.zeros_like(parameter)
                    state["variance"] = torch.zeros_like(parameter)
                state["step"] += 1
                state["mean"].mul_(beta1).add_(parameter.grad, alpha=1 - beta1)
                state["variance"].mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
                size = lr * (1 - beta2 ** state["step"]) ** 0.5 / (1 - beta1 ** state["step"])
                parameter.addcdiv_(state["mean"], state["variance"].sqrt().add_(eps), value=-size)

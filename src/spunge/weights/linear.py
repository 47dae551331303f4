"""Linear maps in float32 on a processor by oneDNN, faster there than MKL, which torch asks of its own accord.

Both come with torch, and both compute in float32; they round otherwise. `docs/benchmarks.md` says what is gained.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_WORTH_IT = 1 << 23
"""Multiplications from which on a product gains more than the 20 µs that each call takes longer to begin."""


def use_onednn(model: nn.Module) -> None:
    """Has a model's linear maps computed by oneDNN wherever that is faster; elsewhere they are what they were."""
    if torch.backends.mkldnn.is_available():
        for module in model.modules():
            if type(module) is nn.Linear:  # not what is derived from it, say for weights in 4 bits
                # Another class rather than another `forward` of the object, which a copy of the model would share,
                # and so multiply with the weights of the original.
                module.__class__ = Linear


class Linear(nn.Linear):
    """A linear map that is large enough for oneDNN, or not, at each call."""

    def forward(self, input: Tensor) -> Tensor:
        fits = input.device.type == "cpu" and input.dtype == self.weight.dtype == torch.float32
        if fits and input.numel() * self.out_features >= _WORTH_IT and not torch.is_autocast_enabled("cpu"):
            return _Product.apply(input, self.weight, self.bias)  # pyright: ignore[reportReturnType]
        return super().forward(input)


class _Product(torch.autograd.Function):
    """The operation has no gradient of its own."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(input if ctx.needs_input_grad[1] else None, weight)  # pyright: ignore[reportAttributeAccessIssue]
        return _multiply(input, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        input, weight = ctx.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
        of_input, of_weight, of_bias = ctx.needs_input_grad  # pyright: ignore[reportAttributeAccessIssue]
        rows = gradient.flatten(0, -2)
        return (
            _multiply(gradient, weight.t(), None) if of_input else None,
            rows.t() @ input.flatten(0, -2) if of_weight else None,  # MKL is as fast here
            rows.sum(0) if of_bias else None,
        )


def _multiply(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # The operation that torch.compile makes of a linear map on a processor.
    return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")

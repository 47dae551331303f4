"""Linear merging: the weighted mean of the task vectors, as in model soups (Wortsman et al., arXiv 2203.05482)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import model_validator

from spunge.interfaces import Block, Merger, Needs

if TYPE_CHECKING:
    from torch import Tensor


class Linear(Merger):
    """The weighted mean of the task vectors; with k of them each removal is diluted to a k-th: a control."""

    method: Literal["linear"] = "linear"

    @model_validator(mode="after")
    def _positive(self) -> Linear:
        if min(self.named_weights.values(), default=1.0) < 0:
            raise ValueError("weights must not be negative in a mean; task_arithmetic takes any")
        return self

    def needs(self) -> Needs:
        return Needs(linear=True)

    def combine(self, block: Block) -> Tensor:
        from spunge import merging

        return merging.average(block)

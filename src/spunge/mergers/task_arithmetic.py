"""Task arithmetic: the weighted sum of the task vectors (Ilharco et al., arXiv 2212.04089, section 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from spunge.interfaces import Block, Merger, Needs

if TYPE_CHECKING:
    from torch import Tensor


class TaskArithmetic(Merger):
    """The weighted sum of the task vectors: keeps every removal whole, and counts what they share k times."""

    method: Literal["task_arithmetic"] = "task_arithmetic"

    def needs(self) -> Needs:
        return Needs(linear=True)

    def combine(self, block: Block) -> Tensor:
        from spunge import merging

        return merging.total(merging.weighted(block, block.deltas))

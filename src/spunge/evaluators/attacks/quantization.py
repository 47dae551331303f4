"""Does rounding the weights bring back what was unlearned? Zhang et al. (2024, arXiv:2410.16454) found that it can.

Unlearning that moves each weight by less than half a step of the grid is undone by rounding to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import polars as pl
from pydantic import Field

from spunge.evaluators.attacks.attacked import Attack, apart, restored, under
from spunge.interfaces import Forecast, LoadedVariant, Work
from spunge.rows.items import ItemTable

if TYPE_CHECKING:
    from torch import Tensor

    from spunge.weights.language_model import LanguageModel

# The sixteen quantiles of QLoRA's NF4 (Dettmers et al., 2023, appendix E): a level for equal shares of a normal.
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


class Quantization(Attack):
    """Rounds the weights of the linear layers in place, and asks a suite again."""

    method: Literal["quantization"] = "quantization"
    codes: tuple[Literal["int8", "int4", "nf4"], ...] = ("int8", "int4", "nf4")
    """The grids: whole numbers of so many bits by the largest magnitude of each block, or QLoRA's four-bit levels."""
    block: int | None = Field(default=64, ge=2)
    """How many neighbouring weights share a scale; None gives each row its own."""

    def forecast(self, base: LanguageModel) -> Forecast:
        """Says what asking once for each grid takes."""
        return self._rounds(base, len(self.codes))

    def evaluate(self, variant: LoadedVariant, work: Work) -> ItemTable:
        """Returns the suite's items once for each grid, the task named after it."""
        from torch import nn, no_grad

        tables = []
        for code in self.codes:
            with restored(variant.model), no_grad():
                for name, module in variant.model.named_modules():
                    if isinstance(module, nn.Linear) and module is not variant.model.get_output_embeddings():
                        module.weight.copy_(quantized(module.weight, code, self.block))
                        work.progress(f"{self.suite}: {code} {name}", 0, 1)
                tables.append(under(self.of.evaluate(variant, apart(work, code)), self.suite, code))
        return pl.concat(tables)


def quantized(weight: Tensor, code: Literal["int8", "int4", "nf4"], block: int | None) -> Tensor:
    """Rounds a matrix to the nearest level of its blocks' grids and back; a last short block has its own scale.

    Args:
        weight: [out features, in features].
        code: The grid.
        block: How many neighbours in a row share a scale; None for the whole row.
    """
    import torch

    rows, columns = weight.shape
    size = min(block or columns, columns)
    padded = torch.nn.functional.pad(weight.float(), (0, -columns % size)).view(rows, -1, size)
    scale = padded.abs().amax(-1, keepdim=True)
    unit = padded / scale.where(scale > 0, 1.0)
    if code == "nf4":
        levels = torch.tensor(_NF4, device=weight.device)
        middles = (levels[1:] + levels[:-1]) / 2
        rounded = levels[torch.bucketize(unit.contiguous(), middles)]
    else:
        most = 127 if code == "int8" else 7
        rounded = (unit * most).round() / most
    return (rounded * scale).view(rows, -1)[:, :columns].to(weight.dtype)

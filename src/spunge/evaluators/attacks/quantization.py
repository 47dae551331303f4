"""Does rounding the weights bring back what was unlearned? Zhang et al. (2024, arXiv:2410.16454) found that it can.

Unlearning that moves each weight by less than half a step of the grid is undone by rounding to it. The grids are those
of round-to-nearest: what calibrated quantisers (GPTQ, AWQ, llama.cpp's K-quants) make of the weights is not tried. A
base model that was itself stored in four bits lies on the grid already, and is no fair test.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from pydantic import Field

from spunge.evaluators.attacks.attack import Ask, Attack, weights_changed
from spunge.interfaces import LoadedVariant, Work

if TYPE_CHECKING:
    from torch import Tensor

Code = Literal["int8", "int4", "nf4"]

# The sixteen quantiles of QLoRA's NF4 (Dettmers et al., 2023, appendix E): a level for equal shares of a normal.
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


class Quantization(Attack):
    """Rounds the weights of the linear layers in place, and asks a suite again."""

    cheap: ClassVar[Mapping[str, Any] | None] = {"codes": ("int4", "nf4")}

    method: Literal["quantization"] = "quantization"
    codes: tuple[Code, ...] = ("int8", "int4", "nf4")
    """The grids: whole numbers of so many bits by the largest magnitude of each block, or QLoRA's four-bit levels."""
    block: int | None = Field(default=64, ge=2)
    """How many neighbouring weights share a scale; None gives each row its own."""

    @property
    def settings(self) -> tuple[str, ...]:
        """The grids."""
        return self.codes

    def attempts(self, variant: LoadedVariant, work: Work) -> Iterator[tuple[str, Ask]]:
        """Yields each grid while all weights lie on it."""

        def rounded(code: str, name: str, weight: Tensor) -> Tensor:
            return quantized(weight, code, self.block)  # pyright: ignore[reportArgumentType]

        for code in weights_changed(variant, self.codes, rounded):
            yield code, self.of.evaluate


def quantized(weight: Tensor, code: Code, block: int | None) -> Tensor:
    """Rounds a matrix to the nearest level of its blocks' grids and back; a last short block has its own scale.

    Args:
        weight: [out features, in features].
        code: The grid.
        block: How many neighbours in a row share a scale; None for the whole row.
    """
    import torch

    assert code in get_args(Code)
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

"""Does rounding the weights bring back what was unlearned? Zhang et al. (2024, arXiv:2410.16454) found that it can.

Unlearning that moves each weight by less than half a step of the grid is undone by rounding to it. All grids are
rounded to the nearest level: what quantisers that read data make of the weights (GPTQ, AWQ) is not tried, nor the
search for better scales with which llama.cpp makes its K-quants. A base model that was itself stored in four bits lies
on the grid already, and is no fair test.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from pydantic import Field

from spunge.evaluators.attacks.attack import Ask, Attack, weights_changed
from spunge.interfaces import LoadedVariant, Work

if TYPE_CHECKING:
    from torch import Tensor

Code = Literal["int8", "int4", "nf4", "q8_0", "q4_k"]

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
    codes: tuple[Code, ...] = ("int8", "int4", "nf4", "q8_0", "q4_k")
    """The grids: whole numbers of so many bits by the largest magnitude of each block, QLoRA's four-bit levels, or
    what GGUF files hold as Q8_0 and Q4_K."""
    block: int | None = Field(default=64, ge=2)
    """How many neighbouring weights share a scale; None gives each row its own. Those of GGUF have their own blocks."""

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
    if code in _BLOCKS:
        padded = torch.nn.functional.pad(weight.float(), (0, -columns % _BLOCKS[code]))
        blocks = padded.view(rows, -1, _BLOCKS[code])
        rounded = (_q8_0 if code == "q8_0" else _q4_k)(blocks)
        return rounded.view(rows, -1)[:, :columns].to(weight.dtype)
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


_BLOCKS: dict[str, int] = {"q8_0": 32, "q4_k": 256}
"""Grid of GGUF → how many neighbours in a row make a block."""


def _q8_0(blocks: Tensor) -> Tensor:
    """Rounds to whole numbers of eight bits times a scale in half precision."""
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    # As ggml does: by the scale before it is rounded, halves away from zero.
    unit = blocks / scale.where(scale > 0, 1.0)
    return unit.sign() * (unit.abs() + 0.5).floor() * scale.half().float()


def _q4_k(blocks: Tensor) -> Tensor:
    """Rounds to sixteen levels between a minimum and a maximum of each 32 weights, both six bits of the block's own."""
    parts = blocks.unflatten(-1, (8, 32))
    low = parts.amin(-1).clamp(max=0.0)
    steps, lows = (parts.amax(-1) - low) / 15, -low

    def six_bits(values: Tensor) -> Tensor:
        unit = values.amax(-1, keepdim=True) / 63
        return (values / unit.where(unit > 0, 1.0)).round() * unit.half().float()

    step, offset = six_bits(steps)[..., None], six_bits(lows)[..., None]
    level = ((parts + offset) / step.where(step > 0, 1.0)).round().clamp(0, 15)
    return (level * step - offset).flatten(-2)

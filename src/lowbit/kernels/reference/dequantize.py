"""dequantize - unpack, decode, multiply: the law that every other kernel is tested against; takes every format everywhere.

In / Out  packed codes and parts, x [tokens, in] -> y [tokens, out] in x's dtype.
Idea      W = (element - zero) * scale in float32, rounded once to x's dtype, then one matrix product: bit-equal to running
          the decoded matrix. Panel by panel, so that never more than PANEL weights are floats.
Traps     A 16-bit x rounds W to 16 bits (relative 2**-9 in bfloat16): the kernels that keep W exact are closer to the truth
          than this one. Compare them with float64, and with this at the tolerance of the dtype.
"""

import torch
from torch import Tensor

from lowbit.formats import Format, Grid, Parts
from lowbit.kernels import packing

RANK = 0
PANEL = 1 << 22
"""Weights decoded at once."""


def supports(format: Format, shape: tuple[int, int], device: torch.device, dtype: torch.dtype, tokens: int) -> str:
    return "" if dtype.is_floating_point else f"x is {dtype}; floats only"


def prepare(format: Format, packed: Tensor, parts: Parts, shape: tuple[int, int]) -> dict[str, Tensor]:
    """The stored bytes as they are; parts that are codes stay packed."""
    return {"codes": packed, **packing.pack_parts(format, parts)}


def restore(prepared: dict[str, Tensor], format: Format, shape: tuple[int, int]) -> tuple[Tensor, Parts]:
    return packing.split(format, {"" if name == "codes" else name: t for name, t in prepared.items()}, shape)


def linear(x: Tensor, prepared: dict[str, Tensor], format: Format, shape: tuple[int, int]) -> Tensor:
    return product(x, *restore(prepared, format, shape), format, shape)


def product(x: Tensor, packed: Tensor, parts: Parts, format: Format, shape: tuple[int, int]) -> Tensor:
    """x [tokens, in] @ decode(W).T, from packed codes and parts. format: without sides."""
    grid, height = Grid(format, parts, shape), format.step[0]
    step = max(1, PANEL // (shape[1] * height)) * height
    if step >= shape[0]:
        return x @ panel(grid, packed, 0, shape[0]).to(x.dtype).t()
    y = x.new_empty(x.shape[0], shape[0])
    for start in range(0, shape[0], step):
        stop = min(start + step, shape[0])
        y[:, start:stop] = x @ panel(grid, packed, start, stop).to(x.dtype).t()
    return y


def panel(grid: Grid, packed: Tensor, start: int, stop: int) -> Tensor:
    """Rows start .. stop of the matrix, float32; both are whole steps of the format."""
    height = grid.format.step[0]
    return grid.inner(packing.codes(grid.format, packed[start // height : stop // height], grid.shape), slice(start, stop))

"""codec - what one step of a solver rounds together: a column of a grid, a vector of a codebook, a tile of a trellis.

In / Out  x [out, width], the columns start .. start + width of the matrix -> (codes, values [out, width]).
Idea      Solvers know nothing of grids: they hand over the columns, as feedback has moved them, and go on with the values that
          come back. The groups of a grid are static (fitted before the first step), so that columns may be taken in any order
          and nothing of the order has to be stored.
Traps     A codec must not change x. Codes may have any dtype and any number of columns, the same at each step.
"""

from typing import Protocol

import torch
from torch import Tensor

from lowbit.formats import Grid


class Codec(Protocol):
    """width: columns rounded together. height: rows whose values depend on each other (1 but for tiles)."""

    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...

    def round(self, x: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Codes [out, any] and values [out, width] of the columns that begin at `start`."""


class GridCodec:
    """Column by column on a fitted grid. Codes are the element's values (float32): `Format.dtype.encode` makes them codes."""

    width = 1
    height = 1

    def __init__(self, grid: Grid) -> None:
        out, inputs = grid.shape
        self._columns = grid.format.group[1] or inputs
        self._rows = grid.format.group[0] or out
        self._out = out
        self._round = grid.format.dtype.round
        self._scale = self._by_group(grid.scale)
        self._zero = None if grid.zero is None else self._by_group(grid.zero)

    def _by_group(self, stored: Tensor) -> list[Tensor]:
        """[R, G] as one contiguous [out, 1] for each group of columns."""
        if self._rows > 1:
            stored = stored.repeat_interleave(self._rows, 0)[: self._out]
        return [column[:, None] for column in stored.T.contiguous()]

    def round(self, x: Tensor, start: int) -> tuple[Tensor, Tensor]:
        group = start // self._columns
        scale = self._scale[group]
        if self._zero is None:
            codes = self._round(x / scale)
            return codes, codes * scale
        zero = self._zero[group]
        codes = self._round((x / scale).add_(zero))
        return codes, (codes - zero).mul_(scale)


def round_all(weight: Tensor, codec: Codec) -> tuple[Tensor, Tensor]:
    """Codes and values of every column of `weight` [out, in], without feedback."""
    steps = [codec.round(weight[:, a : a + codec.width], a) for a in range(0, weight.shape[1], codec.width)]
    return torch.cat([c for c, _ in steps], 1), torch.cat([v for _, v in steps], 1)

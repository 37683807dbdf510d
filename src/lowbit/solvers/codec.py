"""codec - what one step of a solver rounds together: a column of a grid, a vector of a codebook, a tile of a trellis.

In / Out  x [out, width], the columns start .. start + width of the matrix -> (codes, values [out, width]).
Idea      Solvers know nothing of grids: they hand over the columns, as feedback has moved them, and go on with the values that
          come back. The groups of a grid are static (fitted before the first step), so that columns may be taken in any order
          and nothing of the order has to be stored. A format whose values no element and scale give brings its own codec
          (`codec` in its file).
Traps     A codec must not change x. Codes may have any dtype and any number of columns, the same at each step.
"""

from typing import Protocol

import torch
from torch import Tensor

from lowbit import formats
from lowbit.formats import Grid
from lowbit.formats._scalars import Scalars
from lowbit.kernels.encoding import encode

WHOLE = ("int", "ternary")
"""Elements whose values are all the whole numbers between their ends."""


class Codec(Protocol):
    """width: columns rounded together. height: rows whose values depend on each other (1 but for tiles).

    A codec of steps may also have round_in(x, start, lower [width, width]): as round, near by the norm of errors e lower.
    A codec of single columns may have scalars(): the same rounding as data, or None.
    """

    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...

    def round(self, x: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Codes [out / height, any] and values [out, width] of the columns that begin at `start`."""

    def stored(self, codes: Tensor) -> Tensor:
        """What a Quantized holds, uint8, for the codes of all columns side by side."""


def codec(grid: Grid) -> Codec:
    """What rounds onto a fitted grid, inside its sides."""
    rule = formats.shelf.get(grid.format.rule)
    if hasattr(rule, "codec"):
        own: Codec = rule.codec(grid)
        return own
    return GridCodec(grid) if grid.format.step == (1, 1, 1) else StepCodec(grid)


class _Scales:
    """Scales and zeros of a grid by group of columns."""

    def __init__(self, grid: Grid) -> None:
        out, inputs = grid.shape
        self.columns = grid.format.group[1] or inputs
        self._rows = grid.format.group[0] or out
        self._out = out
        self.scale = self._by_group(grid.scale)
        self.zero = None if grid.zero is None else self._by_group(grid.zero)

    def _by_group(self, stored: Tensor) -> list[Tensor]:
        """[R, G] as one contiguous [out, 1] for each group of columns."""
        return [column[:, None] for column in self.transposed(stored)]

    def transposed(self, stored: Tensor) -> Tensor:
        """[R, G] as [G, out], contiguous."""
        if self._rows > 1:
            stored = stored.repeat_interleave(self._rows, 0)[: self._out]
        return stored.T.contiguous()

    def group(self, start: int) -> int:
        return start // self.columns


class GridCodec:
    """Column by column on a fitted grid. Codes are the element's values (float32) until they are stored."""

    width = 1
    height = 1

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._element = grid.format.dtype
        self._round = grid.format.dtype.round
        self._scales = _Scales(grid)

    def scalars(self) -> Scalars:
        scales, grid, element = self._scales, self._grid, self._element
        zero = None if grid.zero is None else scales.transposed(grid.zero)
        told = (scales.columns, scales.transposed(grid.scale), zero, element.minimum, element.maximum)
        if element.name.startswith(WHOLE):
            return Scalars(*told)
        levels = element.decode(torch.arange(element.codes, dtype=torch.uint8, device=grid.scale.device))
        levels = levels[torch.isfinite(levels)].unique()
        return Scalars(*told, levels, lambda places: levels[places.long()])

    def round(self, x: Tensor, start: int) -> tuple[Tensor, Tensor]:
        group = self._scales.group(start)
        scale = self._scales.scale[group]
        if self._scales.zero is None:
            codes = self._round(x / scale)
            return codes, codes * scale
        zero = self._scales.zero[group]
        codes = self._round((x / scale).add_(zero))
        return codes, (codes - zero).mul_(scale)

    def stored(self, codes: Tensor) -> Tensor:
        return self._element.encode(codes)


class StepCodec:
    """Vectors and tiles: the element's own nearest codes, under the grid's scales."""

    def __init__(self, grid: Grid) -> None:
        self.height, self.width, _ = grid.format.step
        self._element = grid.format.dtype
        self._scales = _Scales(grid)

    def round(self, x: Tensor, start: int) -> tuple[Tensor, Tensor]:
        scale = self._scales.scale[self._scales.group(start)]
        codes = encode(self._element, x / scale)
        return codes, self._element.decode(codes) * scale

    def stored(self, codes: Tensor) -> Tensor:
        return codes


def round_all(weight: Tensor, codec: Codec) -> tuple[Tensor, Tensor]:
    """Codes and values of every column of `weight` [out, in], without feedback."""
    steps = [codec.round(weight[:, a : a + codec.width], a) for a in range(0, weight.shape[1], codec.width)]
    return torch.cat([c for c, _ in steps], 1), torch.cat([v for _, v in steps], 1)

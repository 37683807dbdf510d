"""nested - 4-bit codes beside fine ones that are given: each at one of the two 4-bit values next to its fine value.

In / Out  W [out, in], H [in, in], Factor, a 4-bit grid, fine values [out, in] -> the parts of the side `nested`.
Idea      Rounding with feedback, then sweeps of descent with refits of the scales between, as solvers/grid.py does it; but a
          weight has two values to choose from. Feedback wants others of few weights, and wants them little.
Figures   Three linears of lowbit-tiny, tr(E H ET) / tr(W H WT), geometric means, times 1e-5: 250 at 4 bits; gptq(int4-g128)
          248, nearest values 586.
Traps     Where inputs are so correlated that feedback gains more, two values are too few: a synthetic layer has 0.0043,
          gptq 0.0028, nearest values 0.0113.
"""

import torch
from torch import Tensor

from lowbit.formats import Grid
from lowbit.sides import Parts
from lowbit.sides.nested import Nested, neighbours
from lowbit.solvers import descent, ldl
from lowbit.solvers.damping import Factor


class Neighbours:
    """Rounds columns to the nearer of two 4-bit codes, those next to fine values [out, in]."""

    width = 1
    height = 1

    def __init__(self, grid: Grid, fine: Tensor) -> None:
        self._scale, self._columns = grid.scale.T.contiguous(), grid.format.group[1] or grid.shape[1]
        near, other = neighbours(fine, grid.full_scale)
        self._low, self._high = torch.minimum(near, other).T.contiguous(), torch.maximum(near, other).T.contiguous()

    def round(self, x: Tensor, start: int) -> tuple[Tensor, Tensor]:
        scale = self._scale[start // self._columns][:, None]
        codes = torch.minimum(torch.maximum((x / scale).round(), self._low[start][:, None]), self._high[start][:, None])
        return codes, codes * scale

    def stored(self, codes: Tensor) -> Tensor:
        return codes


def solve(weight: Tensor, moment: Tensor, factor: Factor, grid: Grid, fine: Tensor, sweeps: int, side: Nested) -> Parts:
    """The parts of `side` that make the best 4-bit matrix beside `fine`, the decoded fine codes. grid: 4-bit, to start with."""
    codes, values = ldl.solve(weight, factor, Neighbours(grid, fine))
    for number in range(sweeps if factor.lower is not None else 0):
        if number:
            grid, values = descent.refit(weight, moment, grid, codes, values)
        codes, values = descent.sweep(weight, moment, Neighbours(grid, fine), codes, values)
    moved = codes != neighbours(fine, grid.full_scale)[0]
    return side.hold(moved, grid.parts["scale"])

"""nested - codes of two parts: a prefix that is a good solution by itself, and finer bits that are good with it.

In / Out  W [out, in], H [in, in], Factor, a grid of a nested format -> codes, and the best factors of every rate.
Idea      1. The prefix by feedback and descent, as if it were alone, but never more than SLACK of a cell beyond the cell that
          the weight lies in. 2. The finer bits by feedback and descent around the chosen cells, which reach REACH cells wide.
          3. For every rate the factors a, b of least tr(E H ET), E = W - a P - b R.
Figures   Three linears of lowbit-tiny, tr(E H ET) / tr(W H WT), geometric means, times 1e-5 (gptq alone at 4 and 8 bits: 242
          and 1.04; nearest values 586 and about 2):
              SLACK / REACH    none / 1    0.5 / 1.7    0.25 / 1.4    0.15 / 1.24    0.1 / 1.2    0 / 1
              read at 4        273         278          299           336            376          586
              read at 8        16          3.5          2.2           1.7            1.5          1.1
Traps     The exchange is real: what is as good as its own file at 8 bits is rounding to nearest at 4.
"""

import torch
from torch import Tensor

from lowbit.formats import Grid
from lowbit.formats.nested import BASE, LEAST, REACH, pieces
from lowbit.solvers import descent, ldl
from lowbit.solvers.codec import Codec
from lowbit.solvers.damping import Factor

SLACK = 0.25
"""Of a 4-bit cell, that feedback may move a weight beyond its own."""


class Prefix:
    """Rounds columns to middles of cells, near those [in, out] that the weights lie in."""

    width = 1
    height = 1

    def __init__(self, grid: Grid, weight: Tensor) -> None:
        self._columns, rate = grid.format.group[1] or grid.shape[1], int(grid.format.dtype.bits)
        self._step = float(1 << max(BASE - rate, 0))
        half = float(1 << min(rate, BASE) - 1)
        self.scale = (grid.scale * self._step).T.contiguous()
        places = (weight / grid.full_scale / self._step).T
        self._low = (places - 1 - SLACK).ceil().clamp(-half, half - 1)
        self._high = torch.maximum((places + SLACK).floor().clamp(-half, half - 1), self._low)

    def round(self, x: Tensor, start: int) -> tuple[Tensor, Tensor]:
        scale = self.scale[start // self._columns][:, None]
        low, high = self._low[start][:, None], self._high[start][:, None]
        codes = torch.minimum(torch.maximum((x / scale).floor(), low), high)
        return codes, (codes + 0.5) * scale

    def stored(self, codes: Tensor) -> Tensor:
        return codes


class Finer:
    """Rounds columns to the values that the finer bits give around prefixes [out, in]."""

    width = 1
    height = 1

    def __init__(self, prefix: Prefix, codes: Tensor, columns: int, fine: int) -> None:
        self._scale, self._columns, self._count = prefix.scale, columns, 1 << fine
        self._middle = (codes + 0.5).T.contiguous()

    def round(self, x: Tensor, start: int) -> tuple[Tensor, Tensor]:
        scale, middle = self._scale[start // self._columns][:, None], self._middle[start][:, None]
        rest = (x / scale - middle) / REACH + 0.5
        codes = (rest * self._count - 0.5).round().clamp(0, self._count - 1)
        return codes, (middle + ((codes + 0.5) / self._count - 0.5) * REACH) * scale

    def stored(self, codes: Tensor) -> Tensor:
        return codes


def solve(weight: Tensor, moment: Tensor, factor: Factor, grid: Grid, sweeps: int) -> tuple[Tensor, Tensor]:
    """Codes uint8 [out, in] of `weight` on a nested grid, and the shares [7, 2] of all rates."""
    rate = int(grid.format.dtype.bits)
    fine, columns = max(rate - BASE, 0), grid.format.group[1] or grid.shape[1]
    rounding = Prefix(grid, weight)
    prefix = _rounded(weight, moment, factor, rounding, sweeps)
    codes = prefix + (1 << rate - fine - 1)
    if fine:
        codes = codes * (1 << fine) + _rounded(weight, moment, factor, Finer(rounding, prefix, columns, fine), sweeps)
    codes = codes.to(torch.uint8)
    shares = grid.parts["shares"].clone()
    for lower in range(LEAST, rate + 1):
        places, rests = (t * grid.full_scale for t in pieces(codes >> rate - lower, lower))
        shares[lower - LEAST] = best(weight, moment, places, rests)
    return codes, shares


def _rounded(weight: Tensor, moment: Tensor, factor: Factor, rounding: Codec, sweeps: int) -> Tensor:
    codes, values = ldl.solve(weight, factor, rounding)
    for _ in range(sweeps if factor.lower is not None else 0):
        codes, values = descent.sweep(weight, moment, rounding, codes, values)
    return codes


def best(weight: Tensor, moment: Tensor, places: Tensor, rests: Tensor) -> Tensor:
    """a, b of least tr(E H ET), E = W - a P - b R; b = 1 where R is 0."""
    p, r = places @ moment, rests @ moment
    products = torch.stack([(p * places).sum(), (p * rests).sum(), (r * rests).sum(), (p * weight).sum(), (r * weight).sum()])
    pp, pr, rr, pw, rw = products.double().tolist()
    if rr <= 0 or pp * rr - pr * pr <= 1e-9 * pp * rr:
        return weight.new_tensor([pw / pp if pp > 0 else 1.0, 1.0])
    determinant = pp * rr - pr * pr
    return weight.new_tensor([(pw * rr - rw * pr) / determinant, (rw * pp - pw * pr) / determinant])

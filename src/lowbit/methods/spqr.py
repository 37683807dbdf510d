"""spqr - small groups, scales of 8 bits, and the few weights that cost most kept beside the grid.

In / Out  W [out, in], H = E[x xT] -> Quantized in a format with a sparse side ("int3-g16-asym-e4m3-sparse0.5").
Idea      With H = L D LT a rounding error e at step k costs e^2 D_k. A first pass with feedback tells these costs; the dearest
          share of the weights leaves the grid, whose scales are searched again without them. In the second pass a kept weight
          has no error: it takes what feedback asks of it, to half precision.
Source    SpQR (2306.03078), section 4. There a threshold decides and their number follows; here the share is given, so that
          the size is known beforehand. Scales there: 3 bits in two levels; here e4m3 under one scale a matrix.
Defaults  damp 0.01, sweeps 3 (coordinate descent, as gptq).
Traps     Entries beside the grid cost 32 bits each; a share above 1 % is better spent on bits of the grid.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowbit import sides
from lowbit.core.errors import FormatError
from lowbit.formats import Format, Quantized
from lowbit.methods import Method
from lowbit.sides.sparse import Sparse
from lowbit.solvers import damping, descent, grid, ldl
from lowbit.solvers.codec import Codec, codec
from lowbit.statistics import Stats


@dataclass(frozen=True)
class SpQR(Method):
    """damp: added to H, relative to the mean of its diagonal. sweeps: of coordinate descent."""

    format: str = "int3-g16-asym-e4m3-sparse0.5"
    damp: float = 0.01
    sweeps: int = 3

    needs: ClassVar[tuple[str, ...]] = ("second_moment",)

    def solve(self, weight: Tensor, stats: Stats, format: Format) -> Quantized:
        side = _sparse(format)
        moment = stats.get("second_moment")
        if moment is None or not stats.tokens:
            return grid.unseen(weight, format, "largest weights kept, rtn(search=mse)")
        given = grid.problem(moment, stats.tokens)
        weight, moment, report = weight.float(), given.moment, dict(given.report)
        factor = damping.factorise(moment, damping.rounding_order(moment, "activation"), self.damp)
        mask = side.choose(_costs(weight, moment, factor, format.core))
        care = moment.diagonal() * torch.where(mask, 1e-4, 1.0)
        fitted = format.core.fit(torch.where(mask, 0.0, weight), care)
        rounding = Keeping(codec(fitted), mask)
        codes, values = ldl.solve(weight, factor, rounding)
        for _ in range(self.sweeps if factor.lower is not None else 0):
            codes, values = descent.sweep(weight, moment, rounding, codes, values)
        stored = rounding.stored(codes)
        parts = fitted.parts | side.hold(values - fitted.decode(stored), mask)
        report |= {"damp": factor.damp, "error": ldl.loss(weight - values, moment) / max(ldl.loss(weight, moment), 1e-300)}
        if factor.fallback:
            report["fallback"] = factor.fallback
        return Quantized(format, stored, parts, fitted.shape, report)


class Keeping:
    """A codec of single weights that gives what it gets, to half precision, where the mask [out, in] is."""

    width = 1
    height = 1

    def __init__(self, inner: Codec, mask: Tensor) -> None:
        self._inner = inner
        self._mask = mask.T.contiguous()

    def round(self, x: Tensor, start: int) -> tuple[Tensor, Tensor]:
        codes, values = self._inner.round(x, start)
        kept = values + (x - values).to(torch.float16).float()
        return codes, torch.where(self._mask[start][:, None], kept, values)

    def stored(self, codes: Tensor) -> Tensor:
        return self._inner.stored(codes)


def _costs(weight: Tensor, moment: Tensor, factor: damping.Factor, core: Format) -> Tensor:
    """What each weight's rounding error costs [out, in], of a pass with feedback on the plain grid."""
    rounding = Watching(codec(core.fit(weight, moment.diagonal())), weight)
    ldl.solve(weight, factor, rounding)
    pivots = (
        moment.diagonal()
        if factor.pivots is None
        else torch.empty_like(factor.pivots).index_copy_(0, factor.columns, factor.pivots)
    )
    return rounding.errors.T.square() * pivots


class Watching:
    """A codec that notes what it rounded away: errors [in, out]."""

    width = 1
    height = 1

    def __init__(self, inner: Codec, weight: Tensor) -> None:
        self._inner = inner
        self.errors = weight.new_zeros(weight.shape[1], weight.shape[0])

    def round(self, x: Tensor, start: int) -> tuple[Tensor, Tensor]:
        codes, values = self._inner.round(x, start)
        self.errors[start] = (x - values)[:, 0]
        return codes, values

    def stored(self, codes: Tensor) -> Tensor:
        return self._inner.stored(codes)


def _sparse(format: Format) -> Sparse:
    """The sparse side of a format. Raises FormatError when that is not its only one."""
    found = [sides.get(name) for name in format.sides]
    if len(found) != 1 or not isinstance(found[0], Sparse) or format.step != (1, 1, 1):
        raise FormatError(f"spqr({format}): the format has no place for single weights. Use {format}-sparse1.")
    return found[0]

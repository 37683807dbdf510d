"""kept - rounding where some single weights stay beside the grid, nearly exact.

In / Out  W [out, in], H [in, in], a format with a side that keeps entries (sparse, salient), the mask [out, in] of them
          -> Quantized.
Idea      Scales are searched without the kept weights; in the pass with feedback, and in every sweep of descent, a kept weight
          has no error: it takes what feedback asks of it, to half precision. What the side rounds away at the end (nothing, or
          the ninth bit of salient values) is not made up for; the reported error has it.
Source    SpQR (2306.03078), section 4; PB-LLM (2310.00034), section 3.3.
"""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from lowbit.formats import Format, Quantized
from lowbit.sides import Parts
from lowbit.solvers import damping, descent, ldl
from lowbit.solvers.codec import Codec, codec
from lowbit.solvers.grid import Problem

LITTLE = 1e-4
"""Share of its importance that a kept weight has where scales are searched."""


@runtime_checkable
class Keeper(Protocol):
    """A side that keeps a given share of single entries."""

    def choose(self, score: Tensor) -> Tensor:
        """The mask [out, in] of the entries of greatest score."""

    def hold(self, missing: Tensor, mask: Tensor) -> Parts:
        """The parts that keep `missing` [out, in] where the mask is."""


def solve(
    weight: Tensor, given: Problem, factor: damping.Factor, format: Format, side: Keeper, mask: Tensor, sweeps: int
) -> Quantized:
    """Round `weight` [out, in] with the entries of `mask` beside the grid. Report: as solvers/grid.py."""
    moment, report = given.moment, dict(given.report)
    fitted = format.core.fit(torch.where(mask, 0.0, weight), moment.diagonal() * torch.where(mask, LITTLE, 1.0))
    rounding = Keeping(codec(fitted), mask)
    codes, values = ldl.solve(weight, factor, rounding)
    for _ in range(sweeps if factor.lower is not None else 0):
        codes, values = descent.sweep(weight, moment, rounding, codes, values)
    stored = rounding.stored(codes)
    parts = fitted.parts | side.hold(values - fitted.decode(stored), mask)
    found = Quantized(format, stored, parts, fitted.shape, report)
    report["damp"] = factor.damp
    report["error"] = ldl.loss(weight - found.decode(), moment) / max(ldl.loss(weight, moment), 1e-300)
    if factor.fallback:
        report["fallback"] = "; ".join(str(f) for f in (report.get("fallback"), factor.fallback) if f)
    return found


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

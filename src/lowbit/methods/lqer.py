"""lqer - a low-rank matrix that makes up for rounding where inputs are large.

In / Out  W [out, in], mean |x| a channel -> Quantized in a format with a low-rank side ("int4-g128-rank16").
Idea      Q = nearest values; then the largest singular values of (W - Q) diag(s), s = mean |x| over the square root of its
          extremes: the error that large channels see is made up for first (solvers/low_rank.py with a diagonal).
Source    LQER (2402.02446), L2QER, equation 11.
Traps     A heuristic; `qera` has the exact metric from the second moment of the inputs.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowbit.formats import Format, Quantized
from lowbit.methods import Method
from lowbit.methods._taken import Sided
from lowbit.sides.rank import LowRank
from lowbit.solvers import grid, low_rank
from lowbit.statistics import Stats


@dataclass(frozen=True)
class LQER(Method):
    """format: with a low-rank side."""

    format: str = "int4-g128-rank16"

    needs: ClassVar[tuple[str, ...]] = ("mean_magnitude",)
    takes: ClassVar[Sided[LowRank]] = Sided("a low-rank part", ("int4-g128-rank16",), LowRank)

    def solve(self, weight: Tensor, stats: Stats, format: Format) -> Quantized:
        side = self.takes.of(format)
        magnitude = stats.get("mean_magnitude")
        inner = grid.nearest(weight, format.core, search=True)
        scale = torch.ones_like(weight[0]) if magnitude is None or not stats.tokens else magnitude.float()
        scale = scale.clamp_min(1e-4 * float(scale.max().clamp_min(1e-30)))
        scale = scale / (scale.max() * scale.min()).sqrt()
        left, right = low_rank.factors(weight.float() - inner.decode(), scale, side.rank)
        found = Quantized(format, inner.codes, inner.parts | side.hold(left, right), inner.shape, inner.report)
        found.report["error"] = grid.weight_error(weight, found)
        if stats.tokens < weight.shape[1]:
            how = "all channels count alike" if not stats.tokens else "magnitudes are rough"
            found.report["fallback"] = f"{stats.tokens} tokens for {weight.shape[1]} inputs: {how}"
        return found

"""zeroquant_v2 - rounding to nearest, and the largest singular values of what that lost beside it.

In / Out  W [out, in] -> Quantized in a format with a low-rank side ("int4-g128-rank8"). Without calibration text.
Idea      E = W - Q; its r largest singular values, A = U s^(1/2), B = s^(1/2) V^T: Q + A B is nearer to W by all of them.
Source    ZeroQuant-V2 (2303.08302), section 5: low-rank compensation (LoRC).
Defaults  rank 8, by the format; the paper finds 4 to 16 alike.
Traps     All inputs count alike; `lqer` weighs them by their size and `qera` by their second moment: both are better with text.
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
class ZeroQuantV2(Method):
    """format: with a low-rank side."""

    format: str = "int4-g128-rank8"

    needs: ClassVar[tuple[str, ...]] = ()
    takes: ClassVar[Sided[LowRank]] = Sided("a low-rank part", ("int4-g128-rank8",), LowRank)

    def solve(self, weight: Tensor, stats: Stats, format: Format) -> Quantized:
        side = self.takes.of(format)
        inner = grid.nearest(weight, format.core, search=False)
        left, right = low_rank.factors(weight.float() - inner.decode(), torch.ones_like(weight[0]).float(), side.rank)
        found = Quantized(format, inner.codes, inner.parts | side.hold(left, right), inner.shape, inner.report)
        found.report["error"] = grid.weight_error(weight, found)
        return found

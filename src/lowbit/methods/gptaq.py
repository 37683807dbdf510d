"""gptaq - GPTQ that also makes up for the error of its inputs.

In / Out  W [out, in], H = E[x xT], C = E[x_ref xT], x_ref the inputs in the full-precision model -> Quantized.
Idea      A layer behind quantized ones gets inputs x that are already off. Least |x_ref WT - x QT|^2 means rounding
          W* = W (C + r I)(H + r I)^-1 instead of W (solvers/target.py), part of the way: W + alpha (W* - W).
Source    GPTAQ (2504.02692), Qronos (2505.11695). The paper spreads the correction over the columns as they are rounded (its matrix P,
          a first-order step); the closed form here is the exact minimum of the same objective and better on held-out tokens.
Defaults  alpha 0.5, ridge 0.01: measured on lowbit-tiny; the full step (1.0) follows deviations of the calibration text. damp, order,
          sweeps as gptq.
Figures   lowbit-tiny, int3-g128-asym, KL of gptq less 11 %; see docs/LEADERBOARD.md.
Traps     Costs a full-precision pass beside the quantized one. With fewer tokens than inputs W* is noise: left out, and said.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from lowbit.formats import Format, Quantized
from lowbit.methods import Method
from lowbit.solvers import grid
from lowbit.solvers.target import corrected
from lowbit.statistics import Stats


@dataclass(frozen=True)
class GPTAQ(Method):
    """alpha: how far the target goes from W to W*. ridge: pull toward W, relative to mean(diag H)."""

    format: str = ""
    alpha: float = 0.5
    ridge: float = 0.01
    damp: float = 0.01
    order: Literal["activation", "natural"] = "activation"
    sweeps: int = 3

    needs: ClassVar[tuple[str, ...]] = ("second_moment", "cross_moment")

    def solve(self, weight: Tensor, stats: Stats, format: Format) -> Quantized:
        moment, cross = stats.get("second_moment"), stats.get("cross_moment")
        if moment is None or cross is None or not stats.tokens:
            quantized = grid.nearest(weight, format, search=True)
            quantized.report["fallback"] = "no input was seen: rtn(search=mse)"
            return quantized
        given, target = grid.problem(moment, stats.tokens), None
        if stats.tokens >= weight.shape[1]:
            target = corrected(weight.float(), moment, cross, self.ridge, self.alpha)
        return grid.solve(weight, given, format, target=target, damp=self.damp, order=self.order, sweeps=self.sweeps)

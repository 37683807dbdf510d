"""gptaq - GPTQ that also makes up for the error of its inputs.

In / Out  W [out, in], H = E[x xT], C = E[x_ref xT], x_ref the inputs in the full-precision model -> Quantized.
Idea      A layer behind quantized ones gets inputs x that are already off. Least |x_ref WT - x QT|^2 means rounding
          W* = W (C + r I)(H + r I)^-1 instead of W (solvers/target.py), part of the way: W + alpha t / (t + 8) (W* - W), t the
          tokens an input.
Source    GPTAQ (2504.02692), Qronos (2505.11695). GPTAQ spreads the correction over the columns as they are rounded (its matrix
          P, a first-order step); the closed form here is the exact minimum of the same objective.
Defaults  alpha 0.5, ridge 0.01: measured on lowbit-tiny (alpha 0.75: 0 to 4 % worse, 1: 4 to 10 %). Others as gptq.
Figures   lowbit-tiny, KL in milli-nats on books / docs / wikitext2: int4-g128 33.2 / 36.9 / 83.0, int4-g128-asym
          31.8 / 34.5 / 79.8, int3-g128-asym 127 / 138 / 285, int2-g128-asym 632 / 649 / 1105: 5 to 19 % below gptq.
Traps     Costs a full-precision pass beside the quantized one. W* of few tokens is noise: with 11 (4) tokens an input a fixed
          alpha of 0.5 was 5 % worse than none, hence t; with fewer tokens than inputs it is left out. Experts get none:
          the two models send tokens to different ones.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from lowbit.formats import Format, Quantized
from lowbit.methods import Method, Share
from lowbit.solvers import grid
from lowbit.solvers.target import trusted
from lowbit.statistics import Stats


@dataclass(frozen=True)
class GPTAQ(Method):
    """alpha: how far the target goes from W to W*. ridge: pull toward W, relative to mean(diag H)."""

    format: str = ""
    alpha: Share = 0.5
    ridge: float = 0.01
    damp: float = 0.01
    order: Literal["activation", "natural"] = "activation"
    sweeps: int = 3

    needs: ClassVar[tuple[str, ...]] = ("second_moment", "cross_moment")
    stacks: ClassVar[bool] = True

    def solve(self, weight: Tensor, stats: Stats, format: Format) -> Quantized:
        moment, cross = stats.get("second_moment"), stats.get("cross_moment")
        if moment is None or not stats.tokens:
            return grid.unseen(weight, format, "rtn(search=mse)")
        given, target = grid.problem(moment, stats.tokens), None
        if cross is None:
            grid.uncorrected(given)
        else:
            target = trusted(weight.float(), moment, cross, stats.tokens, self.ridge, self.alpha)
        return grid.solve(weight, given, format, target=target, damp=self.damp, order=self.order, sweeps=self.sweeps)

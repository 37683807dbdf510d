"""qronos - rounding that first moves the weights to make up for the error of their inputs, all of the way.

In / Out  W [out, in], H = E[x xT], C = E[x_ref xT], x_ref the inputs in the full-precision model -> Quantized.
Idea      Least |x_ref WT - x QT|^2. Qronos rounds its first column against that objective and solves all others for it anew,
          then goes on as GPTQ. The first step is the closed form W* = W (C + r I)(H + r I)^-1 (solvers/target.py) for the first
          column; taken for all columns, and rounded with feedback, it is the same minimum.
Source    Qronos (2505.11695), algorithm 1.
Defaults  ridge 1e-3: the paper damps by 1e-6 of H's largest eigenvalue, which is some 1e-3 of its mean diagonal where one
          direction dominates. Others as gptq.
Traps     The whole correction trusts its statistics: in a whole model half of it (gptaq) was measured 4 to 10 % better.
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
class Qronos(Method):
    """ridge: pull toward W, relative to mean(diag H). damp: added to H, likewise. sweeps: of coordinate descent."""

    format: str = ""
    ridge: float = 1e-3
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
        elif stats.tokens >= weight.shape[1]:
            target = corrected(weight.float(), moment, cross, self.ridge)
        return grid.solve(weight, given, format, target=target, damp=self.damp, order=self.order, sweeps=self.sweeps)

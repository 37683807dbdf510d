"""gptq - rounding that makes up for its own errors, with second-order knowledge of the inputs.

In / Out  W [out, in], H = E[x xT] -> Quantized.
Idea      Columns are rounded one by one; what each loses is made up for by those that follow, by the factor H = L D LT:
          x_k = W_k + sum over j done of (W_j - Q_j) L_jk. The groups' scales are searched beforehand with weights diag(H); the
          inputs of largest diag(H) come first; coordinate descent over codes and scales ends it (solvers/grid.py).
Source    GPTQ (2210.17323), algorithm 1; in this form LDLQ, QuIP (2307.13304), section 3. Descent: QuIP# (2402.04396).
Defaults  damp 0.01 (paper). order "activation" (the paper's code: --act-order), sweeps 3: see solvers/grid.py. The algorithm of
          the paper is gptq(order=natural, sweeps=0).
Figures   Codes equal to the paper's algorithm bit by bit in its setting. lowbit-tiny, KL in milli-nats on books / docs /
          wikitext2: int4-g128 37.6 / 41.8 / 89.6, int4-g128-asym 36.4 / 41.2 / 84.3, int3-g128-asym 146 / 163 / 324,
          int2-g128-asym 745 / 804 / 1327 (best rival's GPTQ: 38.1 / 43.4 / 90.2, 160 / 177 / 355, 945 / 1101 / 1695).
Traps     An expert that saw few tokens has an H of low rank: it is shrunk toward its diagonal, and the report says so.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from lowbit.formats import Format, Quantized
from lowbit.methods import Method
from lowbit.solvers import grid
from lowbit.statistics import Stats


@dataclass(frozen=True)
class GPTQ(Method):
    """damp: added to H, relative to the mean of its diagonal. sweeps: of coordinate descent."""

    format: str = ""
    damp: float = 0.01
    order: Literal["activation", "natural"] = "activation"
    sweeps: int = 3

    needs: ClassVar[tuple[str, ...]] = ("second_moment",)
    stacks: ClassVar[bool] = True

    def solve(self, weight: Tensor, stats: Stats, format: Format) -> Quantized:
        moment = stats.get("second_moment")
        if moment is None or not stats.tokens:
            return grid.unseen(weight, format, "rtn(search=mse)")
        given = grid.problem(moment, stats.tokens)
        return grid.solve(weight, given, format, damp=self.damp, order=self.order, sweeps=self.sweeps)

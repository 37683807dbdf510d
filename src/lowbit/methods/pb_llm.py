"""pb_llm - weights of one bit, and the salient share of them with 8 bits.

In / Out  W [out, in], H = E[x xT] -> Quantized in a format with a side that keeps entries ("binary-g128-salient10").
Idea      Salient are the weights of greatest w^2 / [H^-1]_jj^2; they stay beside the grid. The others become +-s, s the mean
          magnitude in the group, with feedback as in gptq (solvers/kept.py).
Source    PB-LLM (2310.00034), sections 3.2 and 3.3; its "hessian" saliency, as SparseGPT and BiLLM have it.
Defaults  10 % salient, groups of 128, damp 0.01, sweeps 3.
Figures   Bits a weight at p percent: 1 + 16 / 128 for the signs, 1 + 8 p / 100 for the salient ones and their map.
Traps     At the same size int3 is much better (docs/LEADERBOARD.md): a map of places costs as much as one more bit everywhere.
          The paper trains the binary weights afterwards; rounding alone leaves little below 10 % salient.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowbit.formats import Format, Quantized
from lowbit.methods import Method
from lowbit.methods._taken import Sided
from lowbit.solvers import damping, grid, kept
from lowbit.statistics import Stats


@dataclass(frozen=True)
class PBLLM(Method):
    """damp: added to H, relative to the mean of its diagonal. sweeps: of coordinate descent."""

    format: str = "binary-g128-salient10"
    damp: float = 0.01
    sweeps: int = 3

    needs: ClassVar[tuple[str, ...]] = ("second_moment",)
    takes: ClassVar[Sided[kept.Keeper]] = Sided(
        "room for single weights",
        ("binary-g128-salient10",),
        kept.Keeper,  # type: ignore[type-abstract]
        single=True,
    )

    def solve(self, weight: Tensor, stats: Stats, format: Format) -> Quantized:
        side, moment = self.takes.of(format), stats.get("second_moment")
        if moment is None or not stats.tokens:
            return grid.unseen(weight, format, "largest weights kept, rtn(search=mse)")
        given = grid.problem(moment, stats.tokens)
        factor = damping.factorise(given.moment, damping.rounding_order(given.moment, "activation"), self.damp)
        mask = side.choose(weight.float().square() * damping.salience(given.moment, self.damp))
        return kept.solve(weight.float(), given, factor, format, side, mask, self.sweeps)

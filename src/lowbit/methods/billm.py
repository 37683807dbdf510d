"""billm - a sign and one of two sizes for each weight, the columns that matter most with sizes of their own.

In / Out  W [out, in], H = E[x xT] -> Quantized in a billm format ("billm-g128").
Idea      Salient columns are those of greatest sum of w^2 / [H^-1]_jj^2, chosen in every group of columns, as many as lose
          least; all others are split by size (formats/billm.py). Then feedback and descent as in gptq.
Source    BiLLM (2402.04291), algorithm 1. There a block's sizes are fitted when its turn in feedback comes; here all are fitted
          before, so that columns may be taken in the order of their inputs' power.
Defaults  Groups of 128, damp 0.01, sweeps 3.
Figures   2.5 bits a weight, all counted; the paper says 1.08 (formats/billm.py).
Traps     At the same size int2-g32 and every trellis code lose less: docs/LEADERBOARD.md.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowbit.formats import Format, Grid, Quantized
from lowbit.methods import Method
from lowbit.methods._taken import Formats
from lowbit.solvers import damping, grid
from lowbit.statistics import Stats


@dataclass(frozen=True)
class BiLLM(Method):
    """damp: added to H, relative to the mean of its diagonal. sweeps: of coordinate descent."""

    format: str = "billm-g128"
    damp: float = 0.01
    sweeps: int = 3

    needs: ClassVar[tuple[str, ...]] = ("second_moment",)
    takes: ClassVar[Formats] = Formats(
        "signs and two sizes for each group", ("billm-g128",), lambda format: format.rule == "billm"
    )

    def solve(self, weight: Tensor, stats: Stats, format: Format) -> Quantized:
        moment = stats.get("second_moment")
        if moment is None or not stats.tokens:
            return grid.unseen(weight, format, "columns of largest weights are salient")
        given = grid.problem(moment, stats.tokens)
        return grid.solve(weight, given, format, damp=self.damp, sweeps=self.sweeps, fit=self._fit)

    def _fit(self, format: Format, weight: Tensor, moment: Tensor) -> Grid:
        """The grid whose importance is the paper's saliency of a column."""
        return format.fit(weight, damping.salience(moment, self.damp))

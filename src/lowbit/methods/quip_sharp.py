"""quip_sharp - vectors of eight weights on the lattice E8, in a turned basis, with feedback.

In / Out  W [out, in], H = E[x xT] -> Quantized.
Idea      Random signs and a Hadamard matrix on both sides make the weights Gaussian (sides/had.py); then steps of eight inputs
          are rounded together to the nearest of 65536 vectors, each making up for the errors of the steps before it; sweeps of
          coordinate descent over the steps end it. The grid is a little wider than for rounding alone: feedback makes what
          is rounded larger than the weights.
Source    QuIP# (2402.04396): algorithm 1; scale_override and tune iterations of its code. Without fine-tuning.
Defaults  load 0.9 (the paper's code), the rms that weights have for the element; 0: what is best without feedback.
Figures   lowbit-tiny, 8 windows of 1024 tokens, KL in milli-nats on bundled / pydoc (4 windows):
          e8p2, 2.07 bits: 787 / 593, with load=0.0 746 / 597 (errors 80 / 15); gptq(int2-g128), 2.13 bits: 1143 / 936.
Traps     Any format of fixed vectors will do; others are refused.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowbit.formats import Format, Grid, Quantized, shelf
from lowbit.methods import Method
from lowbit.methods._taken import Formats
from lowbit.solvers import grid
from lowbit.statistics import Stats


@dataclass(frozen=True)
class QuIPSharp(Method):
    """damp: added to H, relative to the mean of its diagonal. load: rms of what is rounded. sweeps: of coordinate descent."""

    format: str = ""
    damp: float = 0.01
    load: float = 0.9
    sweeps: int = 3

    needs: ClassVar[tuple[str, ...]] = ("second_moment",)
    takes: ClassVar[Formats] = Formats(
        "vectors of several weights of a row",
        ("e8p2", "e8p3", "higgs2x256"),
        lambda format: format.rule == "gaussian" and format.step[0] == 1,
    )

    def solve(self, weight: Tensor, stats: Stats, format: Format) -> Quantized:
        moment = stats.get("second_moment")
        if moment is None or not stats.tokens:
            return grid.unseen(weight, format, "nearest vectors in the turned basis")
        given = grid.problem(moment, stats.tokens)
        return grid.solve(weight, given, format, damp=self.damp, order="natural", sweeps=self.sweeps, fit=self._fitted)

    def _fitted(self, format: Format, weight: Tensor, moment: Tensor) -> Grid:
        """The grid at which weights have the rms `load`."""
        found = grid.searched(format, weight, moment)
        rule = shelf.get(format.rule)
        if not self.load or not hasattr(rule, "best_rms"):
            return found
        return Grid(format, rule.rescale(format, found.parts, found.scale * (rule.best_rms(format) / self.load)), found.shape)

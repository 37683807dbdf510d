"""rptq - inputs sorted by their reach, so that those of like reach share a group and its scale.

In / Out  W [out, in], H = E[x xT], greatest |x| a channel -> Quantized in a format with an order ("int4-g32-order"). Inputs are
          rounded in the same order and groups: rptq(int4-g32-order) + act(int4-g32).
Idea      Channels of unlike ranges under one scale waste its steps. Sorted by max|x|, consecutive groups of equal size are the
          clusters; W is solved in that order with the second moment in that order.
Source    RPTQ (2304.01089). There k-means of (max, min) finds clusters of any size, a static scale for each; here groups are
          those of the format, their scales found while running, and ranges symmetric.
Defaults  groups of 32, about as many clusters as the paper takes (32 at the inputs of attention and feed-forward).
Figures   lowbit-tiny, rptq(int4-g32-order) + act(int4-g32, clip=0.9), KL in milli-nats on books / docs / wikitext2:
          164 / 191 / 297.
Traps     Inputs are gathered at every call; the norm or linear before could write them in order, but no file format says so.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowbit.formats import Format, Quantized
from lowbit.methods import Method
from lowbit.methods._taken import Sided
from lowbit.sides.order import Order
from lowbit.solvers import grid
from lowbit.solvers.grid import Problem
from lowbit.statistics import Stats


@dataclass(frozen=True)
class RPTQ(Method):
    """damp: added to H, relative to the mean of its diagonal. sweeps: of coordinate descent."""

    format: str = "int4-g32-order"
    damp: float = 0.01
    sweeps: int = 3

    needs: ClassVar[tuple[str, ...]] = ("second_moment", "max_magnitude")
    takes: ClassVar[Sided[Order]] = Sided("an order of the inputs", ("int4-g32-order",), Order)

    def solve(self, weight: Tensor, stats: Stats, format: Format) -> Quantized:
        side = self.takes.of(format)
        moment, reach = stats.get("second_moment"), stats.get("max_magnitude")
        if moment is None or reach is None or not stats.tokens:
            return grid.unseen(weight, format, "inputs stay in their order, rtn(search=mse)")
        order, given = reach.argsort(stable=True), grid.problem(moment, stats.tokens)
        sorted_ = Problem(given.moment[order][:, order], given.report)
        inner = grid.solve(weight[:, order], sorted_, format.core, damp=self.damp, sweeps=self.sweeps)
        return Quantized(format, inner.codes, inner.parts | side.hold(order), inner.shape, inner.report)

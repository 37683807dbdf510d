"""atom - the input columns of greatest energy in 8 bits beside a 4-bit grid of small groups, both sides rounded.

In / Out  W [out, in], H = E[x xT] -> Quantized in a format with 8-bit columns ("int4-g128-byte128"). Inputs are rounded as
          `act` says: atom(int4-g128-byte128) + act(int4-g128, clip=0.9).
Idea      O = the n columns of greatest E[x^2]. They leave the grid, the groups of both sides are free of outliers, and O makes
          up for what rounding of the others loses (solvers/columns.py).
Source    Atom (2310.19102): there O is put last by a reordering; here its places in the grid hold zeros: nothing is gathered.
Defaults  128 columns (paper, of 4096). clip 0.9 of inputs, as in the paper.
Figures   lowbit-tiny (384 inputs), atom(int4-g128-byte32) + act(int4-g128, clip=0.9), KL in milli-nats on books / docs /
          wikitext2: 144 / 158 / 291.
Traps     Inputs of O stay in 16 bits here, in int8 there: 0.4 % of a step of 8 bits. Small models want fewer columns: byte32.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowbit.formats import Format, Quantized
from lowbit.methods import Method
from lowbit.methods._taken import Sided
from lowbit.sides.byte import Byte
from lowbit.solvers import columns, grid
from lowbit.statistics import Stats


@dataclass(frozen=True)
class Atom(Method):
    """damp: added to H, relative to the mean of its diagonal. sweeps: of coordinate descent."""

    format: str = "int4-g128-byte128"
    damp: float = 0.01
    sweeps: int = 3

    needs: ClassVar[tuple[str, ...]] = ("second_moment",)
    takes: ClassVar[Sided[Byte]] = Sided("8-bit columns", ("int4-g128-byte128",), Byte)

    def solve(self, weight: Tensor, stats: Stats, format: Format) -> Quantized:
        side = self.takes.of(format)
        moment = stats.get("second_moment")
        if moment is None or not stats.tokens:
            return grid.unseen(weight, format, "columns of largest weights kept, rtn(search=mse)")
        given = grid.problem(moment, stats.tokens)
        chosen = side.choose(moment.diagonal())
        inner, kept = columns.solve(weight, given, format.core, chosen, self.damp, self.sweeps)
        return Quantized(format, inner.codes, inner.parts | side.hold(chosen, kept), inner.shape, inner.report)

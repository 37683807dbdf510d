"""quik - the input columns of greatest reach stay beside the grid in 16 bits, all others are rounded on both sides.

In / Out  W [out, in], H = E[x xT], greatest |x| a channel -> Quantized in a format with kept columns ("int4-row-keep64").
          Inputs are rounded as `act` says: quik(int4-row-keep64) + act(int4-token, clip=0.9).
Idea      O = the n columns of greatest |x|, fixed. Neither the scales of W nor those of a token see them; what rounding of the
          others loses they make up for (solvers/columns.py: GPTQ with O last).
Source    QUIK (2310.09259), section 3.
Defaults  64 columns (paper: 128 to 256 of 4096 and more). Down projections in 8 bits, as in the paper:
          quik(int4-row-keep64) + gptq(int8-row)@"*down_proj" + act(int4-token, clip=0.9) + act(int8-token)@"*down_proj".
Figures   lowbit-tiny (384 inputs), that sentence with keep32, KL in milli-nats on books / docs / wikitext2: 79 / 97 / 163; the
          best W4A4 row of other tools, which rotates and keeps nothing: 156 / 190 / 324.
Traps     Statistics are those of the unrounded inputs. The codes of kept columns are stored too, as zeros.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowbit.formats import Format, Quantized
from lowbit.methods import Method
from lowbit.methods._taken import Sided
from lowbit.sides.keep import Keep
from lowbit.solvers import columns, grid
from lowbit.statistics import Stats


@dataclass(frozen=True)
class QUIK(Method):
    """damp: added to H, relative to the mean of its diagonal. sweeps: of coordinate descent."""

    format: str = "int4-row-keep64"
    damp: float = 0.01
    sweeps: int = 3

    needs: ClassVar[tuple[str, ...]] = ("second_moment", "max_magnitude")
    takes: ClassVar[Sided[Keep]] = Sided("columns beside the grid", ("int4-row-keep64",), Keep)

    def solve(self, weight: Tensor, stats: Stats, format: Format) -> Quantized:
        side = self.takes.of(format)
        moment, reach = stats.get("second_moment"), stats.get("max_magnitude")
        if moment is None or reach is None or not stats.tokens:
            return grid.unseen(weight, format, "columns of largest weights kept, rtn(search=mse)")
        chosen = side.choose(reach)
        inner, kept = columns.solve(weight, grid.problem(moment, stats.tokens), format.core, chosen, self.damp, self.sweeps)
        return Quantized(format, inner.codes, inner.parts | side.hold(chosen, kept), inner.shape, inner.report)

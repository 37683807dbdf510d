"""qera - a low-rank matrix that makes up exactly for what rounding does to the outputs.

In / Out  W [out, in], H = E[x xT] -> Quantized in a format with a low-rank side ("int4-g128-rank16").
Idea      Q = W rounded; then the r directions of W - Q that matter most to x: least E|x (W - Q - B A)T|^2, by singular values
          of (W - Q) H^(1/2) (solvers/low_rank.py).
Source    QERA (2410.06040), theorem 1 ("exact"); EoRA (2410.21271) has the same optimum.
Defaults  rounding "gptq": with feedback and descent, as gptq; "nearest" is the paper's.
Traps     What GPTQ leaves has little structure: at equal bits a finer grid often wins. Compare before use.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from lowbit.formats import Format, Quantized
from lowbit.methods import Method
from lowbit.methods._taken import Sided
from lowbit.sides.rank import LowRank
from lowbit.solvers import damping, grid, ldl, low_rank
from lowbit.statistics import Stats


@dataclass(frozen=True)
class QERA(Method):
    """damp: added to H, relative to the mean of its diagonal."""

    format: str = "int4-g128-rank16"
    rounding: Literal["gptq", "nearest"] = "gptq"
    damp: float = 0.01

    needs: ClassVar[tuple[str, ...]] = ("second_moment",)
    takes: ClassVar[Sided[LowRank]] = Sided("a low-rank part", ("int4-g128-rank16",), LowRank)

    def solve(self, weight: Tensor, stats: Stats, format: Format) -> Quantized:
        side = self.takes.of(format)
        moment = stats.get("second_moment")
        if moment is None or not stats.tokens:
            return grid.unseen(weight, format, "largest singular values kept, rtn(search=mse)")
        given = grid.problem(moment, stats.tokens)
        if self.rounding == "gptq":
            inner = grid.solve(weight, given, format.core, damp=self.damp)
        else:
            inner = grid.nearest(weight, format.core, search=True, importance=given.moment.diagonal())
        error = weight.float() - inner.decode()
        root = damping.cholesky(given.moment, self.damp)[0]
        left, right = low_rank.factors(error, given.moment.diagonal().sqrt() if root is None else root, side.rank)
        found = Quantized(format, inner.codes, inner.parts | side.hold(left, right), inner.shape, inner.report)
        found.report["error"] = ldl.loss(weight.float() - found.decode(), given.moment) / max(
            ldl.loss(weight.float(), given.moment), 1e-300
        )
        return found

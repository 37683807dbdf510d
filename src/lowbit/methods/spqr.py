"""spqr - small groups, scales of few bits, and the few weights that cost most kept beside the grid.

In / Out  W [out, in], H = E[x xT], C = E[x_ref xT] -> Quantized in a format with a sparse side ("int3-g16-bilevel-sparse0.5").
Idea      With H = L D LT a rounding error e at step k costs e^2 D_k. A first pass with feedback tells these costs; the dearest
          share of the weights leaves the grid (solvers/kept.py), whose scales are searched again without them.
          The target is that of gptaq: weights that make up for the error of their inputs, alpha of the way.
Source    SpQR (2306.03078), section 4. There a threshold decides and their number follows; here the share is given, so that
          the size is known beforehand. No correction of the target there (alpha 0).
Defaults  damp 0.01, sweeps 3 (coordinate descent, as gptq), alpha 0.5 (as gptaq).
Figures   lowbit-tiny, 3.86 bits, KL in milli-nats on books / docs / wikitext2: 58.5 / 62.4 / 136.2; gptq(int4-g128), 4.125
          bits: 37.5 / 41.4 / 87.2. Its linears, tr(E H ET) / tr(W H WT), alpha 0: 0.0045, with e4m3 scales 0.0050 at 3.91 bits;
          gptq(int4-g128) 0.0024: three bits with entries do not reach four (docs/LOG.md). With 0.4 % of the weights 8 times
          their size 0.0038 and 0.0059: single large weights are what the method is for.
Traps     Entries beside the grid cost 32 bits each; a share above 1 % is better spent on bits of the grid.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowbit.formats import Format, Quantized
from lowbit.methods import Method
from lowbit.methods._taken import Sided
from lowbit.solvers import damping, grid, kept, ldl
from lowbit.solvers.codec import Codec, codec
from lowbit.solvers.target import trusted
from lowbit.statistics import Stats


@dataclass(frozen=True)
class SpQR(Method):
    """damp: added to H, relative to the mean of its diagonal. sweeps: of coordinate descent. alpha: as in gptaq."""

    format: str = "int3-g16-bilevel-sparse0.5"
    damp: float = 0.01
    sweeps: int = 3
    alpha: float = 0.5

    needs: ClassVar[tuple[str, ...]] = ("second_moment", "cross_moment")
    takes: ClassVar[Sided[kept.Keeper]] = Sided(
        "room for single weights",
        ("int3-g16-bilevel-sparse0.5",),
        kept.Keeper,  # type: ignore[type-abstract]
        single=True,
    )

    def solve(self, weight: Tensor, stats: Stats, format: Format) -> Quantized:
        side = self.takes.of(format)
        moment, cross = stats.get("second_moment"), stats.get("cross_moment")
        if moment is None or not stats.tokens:
            return grid.unseen(weight, format, "largest weights kept, rtn(search=mse)")
        given, target = grid.problem(moment, stats.tokens), weight.float()
        if cross is None:
            grid.uncorrected(given)
        else:
            target = trusted(target, moment, cross, stats.tokens, 0.01, self.alpha)
        factor = damping.factorise(given.moment, damping.rounding_order(given.moment, "activation"), self.damp)
        mask = side.choose(_costs(target, given.moment, factor, format.core))
        return kept.solve(target, given, factor, format, side, mask, self.sweeps)


def _costs(weight: Tensor, moment: Tensor, factor: damping.Factor, core: Format) -> Tensor:
    """What each weight's rounding error costs [out, in], of a pass with feedback on the plain grid."""
    rounding = Watching(codec(core.fit(weight, moment.diagonal())), weight)
    ldl.solve(weight, factor, rounding)
    pivots = (
        moment.diagonal()
        if factor.pivots is None
        else torch.empty_like(factor.pivots).index_copy_(0, factor.columns, factor.pivots)
    )
    return rounding.errors.T.square() * pivots


class Watching:
    """A codec that notes what it rounded away: errors [in, out]."""

    width = 1
    height = 1

    def __init__(self, inner: Codec, weight: Tensor) -> None:
        self._inner = inner
        self.errors = weight.new_zeros(weight.shape[1], weight.shape[0])

    def round(self, x: Tensor, start: int) -> tuple[Tensor, Tensor]:
        codes, values = self._inner.round(x, start)
        self.errors[start] = (x - values)[:, 0]
        return codes, values

    def stored(self, codes: Tensor) -> Tensor:
        return self._inner.stored(codes)

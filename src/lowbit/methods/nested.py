"""nested - one file for all precisions from 2 bits up: the top bits of each code are a code of their own.

In / Out  W [out, in], H = E[x xT], C = E[x_ref xT] -> Quantized in a nested format: `nested(2-8)` is read at 2 to 8 bits,
          lowbit.load(folder, bits=4), `lowbit evaluate FOLDER --bits 4`.
Idea      The 4-bit codes are solved first, with feedback; then the bits below them (solvers/nested.py). Rates below 4 are
          the top bits of the 4-bit codes. The target is that of gptaq.
Source    Any-Precision LLM (2402.10517) for growing the finer codes out of the coarse ones; MatQuant (2502.06786) for one
          integer code. Both let a weight's cell decide; here feedback may leave it by a quarter.
Defaults  Groups of 128, damp 0.01, sweeps 3, alpha 0.5 (as gptaq).
Figures   solvers/nested.py.
Traps     Made for 4 bits and the highest rate. Rates between them are worth about a bit less (docs/LOG.md); at 2 and 3 the
          range of the 4-bit grid is too wide: a file made for them is much better. No correction of the stream by rate:
          blocks are calibrated behind blocks at the highest rate.
          Read at 2 to 4 bits it runs on a CPU as plain integers do; above, and on a GPU, on the reference.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowbit.core.errors import FormatError, RecipeError
from lowbit.formats import Format, Grid, Quantized
from lowbit.methods import Method
from lowbit.solvers import damping, grid, ldl
from lowbit.solvers import nested as codes_of
from lowbit.solvers.target import trusted
from lowbit.statistics import Stats


@dataclass(frozen=True)
class Nested(Method):
    """rates: lowest and highest number of bits. group: inputs that share a scale. Others as gptaq."""

    rates: str = "2-8"
    group: int = 128
    alpha: float = 0.5
    damp: float = 0.01
    sweeps: int = 3

    needs: ClassVar[tuple[str, ...]] = ("second_moment", "cross_moment")

    def __post_init__(self) -> None:
        if self.rates not in {f"2-{most}" for most in range(3, 9)}:
            raise RecipeError(f"nested({self.rates}): top bits are codes from 2 bits on, to 8. Use 2-8.")

    @property
    def format(self) -> str:
        """What it rounds to."""
        return f"nested{self.rates[-1]}-g{self.group}"

    def solve(self, weight: Tensor, stats: Stats, format: Format) -> Quantized:
        if format.rule != "nested" or format.sides:
            raise FormatError(f"nested: {format} is no nested format. Use nested8-g128.")
        moment, cross, target = stats.get("second_moment"), stats.get("cross_moment"), weight.float()
        if moment is None or not stats.tokens:
            given = grid.problem(torch.eye(weight.shape[1], device=weight.device), weight.shape[1])
            given.report["fallback"] = "no input was seen: every weight to its nearest value"
        else:
            given = grid.problem(moment, stats.tokens)
            if cross is None:
                grid.uncorrected(given)
            else:
                target = trusted(target, moment, cross, stats.tokens, 0.01, self.alpha)
        fitted = format.fit(target)
        factor = damping.factorise(given.moment, damping.rounding_order(given.moment, "activation"), self.damp)
        codes, shares = codes_of.solve(target, given.moment, factor, fitted, self.sweeps)
        found = Quantized(format, codes, fitted.parts | {"shares": shares}, fitted.shape, dict(given.report))
        found.report["damp"] = factor.damp
        lost = ldl.loss(target - Grid(format, found.parts, found.shape).decode(codes), given.moment)
        found.report["error"] = lost / max(ldl.loss(weight.float(), given.moment), 1e-300)
        return found

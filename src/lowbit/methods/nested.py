"""nested - one file for all precisions from 2 bits to 8: fine integers, and what they need to be read at 4 bits.

In / Out  W [out, in], H = E[x xT], C = E[x_ref xT] -> Quantized in an integer format with the side `nested`: `nested(2-8)` is
          read at 2 to 8 bits, lowbit.load(folder, bits=4), `lowbit evaluate FOLDER --bits 4`.
Idea      The codes of the highest rate are those of gptq. The 4-bit codes are rounded with the same feedback, each to one of
          the two values next to its fine one (solvers/nested.py), and cost a bit a weight and a scale a group. Other rates are
          top bits: of the fine codes above 4, of the 4-bit codes below. Blocks are calibrated behind blocks at 4 bits, whose
          errors the next 4-bit codes make up for as gptaq does.
Source    One file for several rates: Any-Precision LLM (2402.10517), MatQuant (2502.06786). The bit of direction: lowbit's own.
Defaults  Groups of 128, damp 0.01, sweeps 3, alpha 0.5 (as gptaq).
Figures   lowbit-tiny, 16 calibration and 8 evaluation windows, KL in milli-nats on books / docs / wikitext2: read at 4 bits
          33.9 / 45.5 / 88.5, gptq(int4-g128) 37.8 / 51.2 / 93.2; at 8 bits 0.16 / 0.22 / 0.41, gptaq(int8-g128)
          0.14 / 0.19 / 0.39.
Traps     9.25 bits on the disk for `2-8`; read at `bits` it takes what plain integers of that rate take, and their kernels run.
          Made for 4 bits and the highest rate: at 5 to 7 it is worth about as many bits of nearest values; at 2 and 3 the
          range of the 4-bit grid is too wide, a file made for them is much better.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowbit import sides
from lowbit.core.errors import FormatError, RecipeError
from lowbit.formats import Format, Quantized
from lowbit.formats import parse as parse_format
from lowbit.methods import Method
from lowbit.sides.nested import Nested as Side
from lowbit.solvers import damping, grid
from lowbit.solvers import nested as coarse
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
        if self.rates not in {f"2-{most}" for most in range(5, 9)}:
            raise RecipeError(f"nested({self.rates}): a file is read from 2 bits on to its highest rate, 5 to 8. Use 2-8.")

    @property
    def format(self) -> str:
        """What it rounds to."""
        return f"int{self.rates[-1]}-g{self.group}-nested{self.group}"

    def solve(self, weight: Tensor, stats: Stats, format: Format) -> Quantized:
        side = sides.get(format.sides[0]) if len(format.sides) == 1 else None
        if not isinstance(side, Side) or format.rule != "symmetric":
            raise FormatError(f"nested: {format} is not read at several rates. Use {self.format}.")
        moment, cross, target = stats.get("second_moment"), stats.get("cross_moment"), weight.float()
        if moment is None or not stats.tokens:
            return grid.unseen(weight, format, "rtn(search=mse)")
        given = grid.problem(moment, stats.tokens)
        if cross is None:
            grid.uncorrected(given)
        fine = grid.solve(weight, given, format.core, damp=self.damp, sweeps=self.sweeps)
        if cross is not None:
            target = trusted(target, moment, cross, stats.tokens, 0.01, self.alpha)
        factor = damping.factor_of(given.moment, "activation", self.damp)
        start = grid.searched(parse_format(f"int4-g{side.group}"), target, given.moment)
        parts = coarse.solve(target, given.moment, factor, start, fine.decode(), self.sweeps, side)
        return Quantized(format, fine.codes, fine.parts | parts, fine.shape, fine.report)

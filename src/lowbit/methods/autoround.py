"""autoround - which way each weight is rounded, and the ends of each group's range, learned by signs of gradients.

In / Out  a block with solved matrices in integer formats, its inputs, the outputs it should give -> other codes and scales on
          the same grids. Alone, as autoround(int4-g128), gptaq makes the start.
Idea      code = round(w / scale + zero + v): v in -1/2 .. 1/2 for each weight; scale and zero from the group's range
          lo * beta .. hi * alpha (without a zero: scale * alpha). All are moved by rate * sign(gradient) of the squared error
          of the block's output, the rate going down to 0.
          Here the start is not the nearest value but the solver's: w begins in the cell of its code (solvers/integers.py).
Source    AutoRound (2309.05516), sections 3.1 and 3.2. SignRound 2 (auto-round's `enable_alg_ext`): scales from a search
          weighted by the inputs' power before training, here those of gptaq; the dropped errors at few bits.
Defaults  200 steps of 8 windows, rate 1 / steps, as in the paper; below 4 bits a thousandth of the errors is dropped; alpha 1:
          the block is to give what the full-precision model has, as in the paper. Less than 1 has not been measured.
Figures   lowbit-tiny, KL in milli-nats on books / docs / wikitext2 (the original's own rows in brackets):
          int4-g128 32.2 / 36.4 / 82.2 (33.6 / 38.3 / 81.5), int3-g128 119 / 133 / 285 (131 on books),
          int2-g128 473 / 493 / 876 (589 on books), int2-g128-asym 492 / 517 / 928 (517 / 558 / 933).
          1000 steps at a fifth of the rate, int2-g128-asym: 510 / 601 / 977; they fit the calibration text.
Traps     It fits the calibration text: windows held out decide, but text of another kind may gain less than they say.
          Integer formats only; for others use block_tuning.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowbit.formats import Format
from lowbit.methods import Block, Count, Method, Share, _training
from lowbit.solvers import integers, tuning

RATE = 0.005
"""Of few steps; of more than 200 it is 1 / steps."""
TRIM = 0.001
FEW_BITS = 4


@dataclass(frozen=True)
class AutoRound(Method):
    """steps: of descent. batch: windows a step. rate: of v and of ranges at the first step; 0: 1 / steps, at most 0.005.
    alpha: share of the error of the inputs that the block is to make up for."""

    format: str = ""
    steps: Count = 200
    batch: Count = 8
    rate: float = 0.0
    alpha: Share = 1.0

    needs: ClassVar[tuple[str, ...]] = ()
    start: ClassVar[str] = "gptaq"

    def refusal(self, format: Format) -> str:
        return integers.refusal(format)

    def tune(self, block: Block, inputs: list[Tensor], targets: list[Tensor]) -> None:
        rate = self.rate or min(RATE, 1 / self.steps)
        pieces = {n: integers.Rounding(block.originals[n], q, rate) for n, q in block.quantized.items()}
        few = min(q.format.dtype.bits for q in block.quantized.values()) < FEW_BITS
        settings = tuning.Settings(self.steps, self.batch, "sign", trim=TRIM if few else 0.0)
        wanted = _training.partway(block, inputs, targets, self.alpha)
        _training.train(block, pieces, {}, inputs, wanted, settings)

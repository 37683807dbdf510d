"""omniquant - the ends of every group's range, learned through sigmoids; weights go to the nearest value.

In / Out  a block with matrices in integer formats, its inputs, the outputs it should give -> other scales, zeros and codes.
          Alone, as omniquant(int4-g128-asym), rtn makes the start.
Idea      hi = sigmoid(a) * max, lo = sigmoid(b) * min of the group's weights; scale = (hi - lo) / steps, zero = -lo / scale
          (without a zero: scale = sigmoid(a) * the signed largest weight / 2**(bits - 1)). Adam follows the gradients of the
          squared error of the block's output to a and b, through the rounding. No weight is moved, so little text is enough.
Source    OmniQuant (2308.13137), section 3.2, learnable weight clipping (LWC).
Defaults  a = b = 4 at the start (a factor of 0.982), rate 0.01, as in the paper, which takes 2560 steps of one window.
Traps     Its other half, learned scales between channels (LET), is what awq and smoothing do before rounding; LLaMA-like models
          in weight-only formats are made without it in the paper too. Nearest values: gptq and autoround reach further.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowbit import sides
from lowbit.formats import Format, Grid, Quantized
from lowbit.methods import Block, Count, Method, _training
from lowbit.solvers import integers, tuning
from lowbit.solvers.trained import Trained

OPEN = 4.0
"""Where a and b start."""


class Clipping:
    """One matrix: its weights, and a, b of every group."""

    def __init__(self, original: Tensor, start: Quantized, rate: float) -> None:
        self.start = start
        plain = start.format.fit(original, search=False)
        self._plain = Grid(start.format, start.parts | plain.parts, start.shape)
        self._inner = original.float()
        for name in reversed(start.format.sides):
            self._inner = sides.get(name).into(self._inner, start.parts)
        ends = 1 if plain.zero is None else 2
        self.trained = [Trained(torch.full_like(plain.scale, OPEN), rate) for _ in range(ends)]

    def grid(self) -> Grid:
        """The grid of the ranges as they are now."""
        return integers.ranged(self.start, self._plain, [torch.sigmoid(t.value) for t in self.trained])

    def value(self) -> Tensor:
        found = self.grid()
        return integers.weight(integers.steps(self._inner, found), found)

    def quantized(self) -> Quantized:
        """The matrix as it is stored."""
        found = self.grid()
        return integers.quantized(integers.steps(self._inner, found), found, self.start)


@dataclass(frozen=True)
class OmniQuant(Method):
    """steps: of descent. batch: windows a step. rate: of a and b at the first step."""

    format: str = ""
    steps: Count = 400
    batch: Count = 2
    rate: float = 0.01

    needs: ClassVar[tuple[str, ...]] = ()
    start: ClassVar[str] = "rtn"

    def refusal(self, format: Format) -> str:
        return integers.refusal(format)

    def tune(self, block: Block, inputs: list[Tensor], targets: list[Tensor]) -> None:
        pieces = {n: Clipping(block.originals[n], q, self.rate) for n, q in block.quantized.items()}
        settings = tuning.Settings(self.steps, self.batch, "adam")
        _training.train(block, pieces, {}, inputs, targets, settings)

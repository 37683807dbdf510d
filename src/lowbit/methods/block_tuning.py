"""block_tuning - the scales, norms and biases of a quantized block, trained; codes stay.

In / Out  a block with solved matrices, its inputs, the outputs it should give -> other scales, norms and biases. Any format
          whose scales can be set one by one (symmetric, asym, floatzero, tables): gptq(nf4-g64) + block_tuning.
Idea      A solver sets the scales of one matrix for that matrix's output; here all scales of a block are set together for the
          block's. Adam follows the gradients of the squared error to a factor of every scale, and to norms and biases.
Source    The scales of PV-Tuning (2405.14852) and of EfficientQAT's second phase (2407.11062), norms as in 2309.02784.
Defaults  200 steps of 4 windows; rate 0.001 of a scale, or of a norm's root mean square.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowbit.formats import Format, Grid, Quantized, shelf
from lowbit.methods import Block, Method, _training
from lowbit.solvers import trained, tuning
from lowbit.solvers.trained import Trained, through


class Scales:
    """One matrix: factors of its scales [R, G]."""

    def __init__(self, start: Quantized, rate: float) -> None:
        self.start = start
        self._scale = start.grid.scale
        self.factor = Trained(torch.ones_like(self._scale), rate, 0.5, 2.0)
        self.trained = [self.factor]

    def _grid(self) -> Grid:
        """The grid with the scales as they are now, as they can be stored."""
        start, scale = self.start, self._scale * self.factor.value
        parts = shelf.get(start.format.rule).rescale(start.format, start.parts, scale.detach())
        found = Grid(start.format, parts, start.shape)
        found.scale = through(scale, found.scale)
        return found

    def value(self) -> Tensor:
        return self._grid().decode(self.start.codes)

    def quantized(self) -> Quantized:
        """The matrix as it is stored."""
        start = self.start
        return Quantized(start.format, start.codes, self._grid().parts, start.shape, dict(start.report))


@dataclass(frozen=True)
class BlockTuning(Method):
    """steps: of descent. batch: windows a step. rate: as a share of a scale, or of a norm's root mean square."""

    steps: int = 200
    batch: int = 4
    rate: float = 0.001

    needs: ClassVar[tuple[str, ...]] = ()

    def refusal(self, format: Format) -> str:
        rule = shelf.get(format.rule)
        return "" if hasattr(rule, "rescale") else f"the scales of {format.rule} cannot be set one by one. Use norm_tuning"

    def tune(self, block: Block, inputs: list[Tensor], targets: list[Tensor]) -> None:
        matrices = {n: Scales(q, self.rate) for n, q in block.quantized.items()}
        floats = trained.floats(block.module, self.rate, block.stored)
        _training.train(block, matrices, floats, inputs, targets, tuning.Settings(self.steps, self.batch, "adam"))

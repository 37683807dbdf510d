"""block_tuning - the scales, norms and biases of a quantized block, trained; codes stay.

In / Out  a block with solved matrices, its inputs, the outputs it should give -> other scales, norms and biases. Any format
          whose scales can be set one by one: gptq(nf4-g64) + block_tuning. What stands around a grid is trained too, if it is
          made of real numbers (the factors of a turned basis, a low-rank part): gptaq(trellis2) + block_tuning.
Idea      A solver sets the scales of one matrix for that matrix's output; here all scales of a block are set together for the
          block's. Adam follows the gradients of the squared error to a factor of every scale, and to norms and biases.
Source    Factors of the basis: QuIP# (2402.04396) section 5. Scales: PV-Tuning (2405.14852) and the second phase of
          EfficientQAT (2407.11062). Norms: 2309.02784.
Defaults  200 steps of 4 windows; rate 0.001 of a scale, or of a norm's root mean square.
Figures   lowbit-tiny, gptaq(trellis2), KL in milli-nats on books / docs / wikitext2: 285 / 291 / 579 before, 280 / 277 / 538
          after; gptaq(trellis3) 61 / 66 / 143, the same after: at 3 bits and more there is nothing left for scales to find.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowbit import sides
from lowbit.formats import Format, Grid, Parts, Quantized, shelf
from lowbit.methods import Block, Method, _training
from lowbit.solvers import trained, tuning
from lowbit.solvers.trained import Trained, through


class Scales:
    """One matrix: factors of its scales [R, G], and what its sides let be trained."""

    def __init__(self, start: Quantized, rate: float) -> None:
        self.start = start
        self._grid = start.grid
        self._inner = self._grid.inner(start.codes)
        self.factor = Trained(torch.ones_like(self._grid.scale), rate, 0.5, 2.0)
        names = [part for side in start.format.sides for part in getattr(sides.get(side), "trained", ())]
        self._around = {name: Trained(start.parts[name], rate * float(start.parts[name].float().std() or 1)) for name in names}
        self.trained = [self.factor, *self._around.values()]

    def _parts(self) -> Parts:
        """The parts as they are now, as they can be stored."""
        start, rule = self.start, shelf.get(self.start.format.rule)
        around = {name: t.value.detach().to(start.parts[name].dtype) for name, t in self._around.items()}
        return {**rule.rescale(start.format, start.parts, self._grid.scale * self.factor.value.detach()), **around}

    def value(self) -> Tensor:
        parts = self._parts()
        stored = Grid(self.start.format, parts, self.start.shape).inner(self.start.codes)
        values = through(self._inner * self._grid.spread(self.factor.value), stored)
        parts |= {name: through(t.value, parts[name].float()) for name, t in self._around.items()}
        for name in self.start.format.sides:
            values = sides.get(name).decode(values, parts)
        return values

    def quantized(self) -> Quantized:
        """The matrix as it is stored."""
        start = self.start
        return Quantized(start.format, start.codes, self._parts(), start.shape, dict(start.report))


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

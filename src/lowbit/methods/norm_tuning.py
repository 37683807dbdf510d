"""norm_tuning - the norms and biases of a quantized block, trained; codes and scales stay.

In / Out  a block with solved matrices, its inputs, the outputs it should give -> other norm weights and biases. The file
          does not grow. Any format: gptq(int3-g128) + norm_tuning.
Idea      What rounding does to a block is partly a shift and a gain of its channels; norms and biases can take that back. Adam
          follows the gradients of the squared error of the block's output.
Source    Norm tweaking (2309.02784); there the loss is the channels' mean and variance.
Defaults  100 steps of 4 windows; rate 0.001 of the tensor's root mean square.
Traps     A few thousand numbers: it cannot overfit, and it cannot do much either.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowbit.methods import Block, Count, Method, _training
from lowbit.solvers import trained, tuning


@dataclass(frozen=True)
class NormTuning(Method):
    """steps: of descent. batch: windows a step. rate: of each tensor, as a share of its root mean square."""

    steps: Count = 100
    batch: Count = 4
    rate: float = 0.001

    needs: ClassVar[tuple[str, ...]] = ()

    def tune(self, block: Block, inputs: list[Tensor], targets: list[Tensor]) -> None:
        floats = trained.floats(block.module, self.rate, block.stored)
        settings = tuning.Settings(self.steps, self.batch, "adam")
        _training.train(block, {}, floats, inputs, targets, settings)

"""zeroquant - a block learns to give what it gave in full precision, for the inputs that quantized blocks before it give.

In / Out  a block with matrices rounded to nearest, hidden states that enter it -> other codes and ranges. Inputs are rounded as
          `act` says: zeroquant(int8-row) + act(int8-token); for 4-bit weights zeroquant(int4-g128) + act(int8-token).
Idea      Layer-wise distillation: the teacher is the block itself with its float weights, on the same inputs, so that neither
          labels nor the original's stream are needed. Adam trains every weight's offset before rounding and every range;
          rounding of weights and inputs passes gradients straight through.
Source    ZeroQuant (2206.01861), section 4.2 (LKD); token-wise scales of inputs: section 4.1.
Defaults  Rounded to nearest before. 200 steps of 4 windows; rate 0.002 in steps of the grid. The paper trains whole weights
          (Adam, 5e-6 to 1e-5); here offsets stay within half a step, the parametrisation of solvers/integers.py.
Figures   Block 0 of lowbit-tiny in int4-g128 with int8-token inputs, 10 windows of 128 tokens, 40 steps: relative squared error
          on the held-out window 0.0159 before, 0.0099 after; KL of the model in milli-nats (closing check) 21.6 and 18.6.
Traps     A teacher on quantized inputs does not make up for the errors of the blocks before; `efficientqat` and `autoround`,
          whose targets are the original's, do.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lowbit.formats import Format
from lowbit.methods import Block, Count, Method, _training
from lowbit.solvers import integers, tuning


@dataclass(frozen=True)
class ZeroQuant(Method):
    """steps: of descent. batch: windows a step. rate: of weights in steps of the grid, and of ranges as a share."""

    format: str = ""
    steps: Count = 200
    batch: Count = 4
    rate: float = 0.002

    needs: ClassVar[tuple[str, ...]] = ()
    start: ClassVar[str] = "rtn"

    def refusal(self, format: Format) -> str:
        return integers.refusal(format)

    def tune(self, block: Block, inputs: list[Tensor], targets: list[Tensor]) -> None:
        pieces = {n: integers.Rounding(block.originals[n], q, self.rate) for n, q in block.quantized.items()}
        settings = tuning.Settings(self.steps, self.batch, "adam", decay="cosine")
        _training.train(block, pieces, {}, inputs, _taught(block, inputs), settings)


@torch.no_grad()
def _taught(block: Block, inputs: list[Tensor]) -> list[Tensor]:
    """What the block gives with its float weights: hidden states by batch."""
    held = {name: linear.weight for name, linear in block.linears.items()}
    for name, linear in block.linears.items():
        linear.weight = nn.Parameter(block.originals[name].to(held[name].dtype), requires_grad=False)
    found = [block.run(batch) for batch in inputs]
    for name, linear in block.linears.items():
        linear.weight = held[name]
    return found

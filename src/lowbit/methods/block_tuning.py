"""block_tuning - the scales, norms and biases of a quantized block, trained; codes stay.

In / Out  a block with solved matrices, its inputs, the outputs it should give -> other scales, norms and biases. Any format
          whose scales can be set one by one, gptq(nf4-g64) + block_tuning, or that has tables, lnq(lut3-row) + block_tuning.
          What stands around a grid is trained too, if it is made of real numbers (the factors of a turned basis, a low-rank
          part): gptaq(trellis2) + block_tuning.
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

from torch import Tensor

from lowbit.formats import Format
from lowbit.methods import Block, Count, Method, _training
from lowbit.solvers import continuous, trained, tuning
from lowbit.solvers.continuous import Continuous


@dataclass(frozen=True)
class BlockTuning(Method):
    """steps: of descent. batch: windows a step. rate: as a share of a scale, or of a norm's root mean square."""

    steps: Count = 200
    batch: Count = 4
    rate: float = 0.001

    needs: ClassVar[tuple[str, ...]] = ()

    def refusal(self, format: Format) -> str:
        return continuous.refusal(format)

    def tune(self, block: Block, inputs: list[Tensor], targets: list[Tensor]) -> None:
        matrices = {n: Continuous(q, self.rate) for n, q in block.quantized.items()}
        floats = trained.floats(block.module, self.rate, block.stored)
        _training.train(block, matrices, floats, inputs, targets, tuning.Settings(self.steps, self.batch, "adam"))

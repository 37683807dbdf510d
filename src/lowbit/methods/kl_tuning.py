"""kl_tuning - scales, norms and all other real numbers of a finished model, trained to the original's predictions; codes stay.

In / Out  a quantized model, calibration windows -> other scales, float zeros, tables, codebooks, factors of bases, norms and
          biases. Any format: gptaq(int4-g128) + kl_tuning, gptaq(trellis2) + block_tuning + kl_tuning.
Idea      What a block's output error costs is for the blocks after it to say. All blocks are trained together by the loss that
          quality is measured in, KL(original || quantized) of the next token's distribution, from the hidden states that enter
          the first block to the logits. Adam, as in block_tuning; windows held out decide.
Source    QuIP# (2402.04396) section 5.2 and AQLM's code: the original's logits as targets; scales: EfficientQAT (2407.11062)
          section 3.3, by cross-entropy there.
Defaults  200 steps of 4 windows, rate 0.001, as block_tuning.
Figures   lowbit-tiny, 64 windows, KL in milli-nats on books / docs / wikitext2: gptaq(trellis2) 285 / 291 / 579, after
          it 255 / 259 / 528; block_tuning in its place 280 / 277 / 538.
Traps     The whole model is in memory, as codes. It fits the text that it sees: off that text the gain is smaller.
"""

from dataclasses import dataclass
from typing import ClassVar

from lowbit.formats import Format
from lowbit.methods import Count, Method, Model, _training
from lowbit.solvers import continuous, tuning, whole
from lowbit.solvers.continuous import Continuous


@dataclass(frozen=True)
class KLTuning(Method):
    """steps: of descent. batch: windows a step. rate: as a share of a scale, or of a norm's root mean square."""

    steps: Count = 200
    batch: Count = 4
    rate: float = 0.001

    needs: ClassVar[tuple[str, ...]] = ()
    weight_bytes: ClassVar[int] = 1

    def refusal(self, format: Format) -> str:
        return continuous.refusal(format)

    def finish(self, model: Model) -> None:
        matrices = {n: Continuous(q, self.rate) for n, q in model.quantized.items()}
        floats = _training.floats(model, self.rate)
        _training.finish(model, matrices, floats, whole.divergence, tuning.Settings(self.steps, self.batch, "adam"))

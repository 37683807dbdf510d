"""pv_tuning - a finished model's codes and its real numbers, trained in turn to the original's predictions.

In / Out  a quantized model, calibration windows -> other codes, scales, tables, codebooks, norms. Any format: aqlm(aqlm2x8) +
          pv_tuning, lnq(lut3-row) + pv_tuning, gptaq(int2-g128) + pv_tuning.
Idea      V: real numbers go down the gradient of KL(original || quantized). P: a buffer beside each matrix does likewise, and
          every `every` steps the codes whose buffer has drifted farthest go to the nearest values there, at most a share of
          them at a time: the gradient speaks of small steps, and many codes changed together would be none.
Source    PV-Tuning (2405.14852), algorithms 1 and 2; its code: code_lr 1e-2, at most 1 % of the codes a step, betas (0, 0.95).
Defaults  Adam's usual betas, for it shares the steps of kl_tuning; a P step every 10 steps, at most 2 % of the codes.
Traps     Not yet measured on a whole model but a tiny random one. 18 bytes of memory a weight. Each P step encodes all
          matrices: quick for tables and vectors, a minute a million weights on a CPU for trellis codes.
"""

from dataclasses import dataclass
from typing import ClassVar

from lowbit.methods import Count, Method, Model, Share, _training
from lowbit.solvers import tuning, whole
from lowbit.solvers.moving import Moving


@dataclass(frozen=True)
class PVTuning(Method):
    """steps: of descent. batch: windows a step. rate: of real numbers, as in kl_tuning. code_rate: of the buffers, as a share
    of the values' root mean square. every: steps between two changes of codes. share: of the codes that may change then."""

    steps: Count = 200
    batch: Count = 4
    rate: float = 0.001
    code_rate: float = 0.005
    every: Count = 10
    share: Share = 0.02

    needs: ClassVar[tuple[str, ...]] = ()
    weight_bytes: ClassVar[int] = 18

    def finish(self, model: Model) -> None:
        matrices = {n: Moving(q, self.rate, self.code_rate, self.share) for n, q in model.quantized.items()}
        done = 0

        def moved() -> None:
            nonlocal done
            done += 1
            for matrix in matrices.values() if done % self.every == 0 else ():
                matrix.move()

        settings, held = tuning.Settings(self.steps, self.batch, "adam"), [matrix.codes for matrix in matrices.values()]
        _training.finish(model, matrices, _training.floats(model, self.rate), whole.divergence, settings, moved, held)

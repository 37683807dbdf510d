"""e2e_qp - EfficientQAT's second phase: only the scales of a finished model, trained on the text itself.

In / Out  a quantized model, calibration windows -> other scales; codes, zeros and norms stay, the file's form does not change:
          efficientqat(int2-g64-asym) + e2e_qp.
Idea      After its blocks were trained one by one, the model's scales are trained together by the likelihood of the tokens that
          follow, as in plain fine-tuning. Windows held out decide.
Source    EfficientQAT (2407.11062), section 3.3, E2E-QP.
Defaults  Cosine decay, rate 0.001 of a scale. The paper: 4096 windows of 4096 tokens, Adam at 2e-5 (2 bits) in the units of
          scales.
Traps     Likelihood teaches the calibration text, not the original: on little text the predictions of other text drift away.
          kl_tuning is the same with the original as the teacher.
"""

from dataclasses import dataclass
from typing import ClassVar

from lowbit.formats import Format, shelf
from lowbit.methods import Count, Method, Model, _training
from lowbit.solvers import continuous, tuning, whole
from lowbit.solvers.continuous import Continuous


@dataclass(frozen=True)
class E2EQP(Method):
    """steps: of descent. batch: windows a step. rate: as a share of a scale."""

    steps: Count = 200
    batch: Count = 4
    rate: float = 0.001

    needs: ClassVar[tuple[str, ...]] = ()
    weight_bytes: ClassVar[int] = 1

    def refusal(self, format: Format) -> str:
        return continuous.refusal(format) if hasattr(shelf.get(format.rule), "rescale") else f"{format.rule} has no scales"

    def finish(self, model: Model) -> None:
        matrices = {n: Continuous(q, self.rate, scales=True) for n, q in model.quantized.items()}
        settings = tuning.Settings(self.steps, self.batch, "adam", decay="cosine")
        _training.finish(model, matrices, {}, whole.likelihood, settings)

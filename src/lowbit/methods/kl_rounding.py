"""kl_rounding - which way each weight is rounded, and its group's range, learned from the predictions of the whole model.

In / Out  a quantized model with matrices in integer formats, calibration windows -> other codes and scales on the same grids.
          After any solver or tuner: autoround(int3-g128) + kl_rounding.
Idea      As autoround, code = round(w / scale + zero + v) with v in -1/2 .. 1/2, moved by signs of gradients; the loss is not a
          block's output error but KL(original || quantized) of the next token's distribution, through all blocks together.
Source    The rounding and its descent: AutoRound (2309.05516). The loss: as kl_tuning.
Defaults  200 steps of 8 windows; rate 0.002: at most a fifth of a step from where the solver left each weight.
Figures   lowbit-tiny, 64 windows, KL in milli-nats on books / docs / wikitext2, before and after:
          autoround(int2-g128) 473 / 493 / 876, 416 / 451 / 836; autoround(int3-g128) 119 / 133 / 285, 106 / 122 / 263;
          autoround(int4-g128-asym) 31.2 / 34.7 / 78.6, 31.6 / 34.8 / 77.0: no difference at 4 bits.
          From gptaq at rate 0.005: int2-g128 425 / 458 / 875, int3-g128 109 / 130 / 266, int4-g128-asym 31.8 / 35.9 / 78.0.
Traps     17 bytes of memory a weight. Every weight is trained: it fits the text that it sees, so give it many windows.
"""

from dataclasses import dataclass
from typing import ClassVar

from lowbit.formats import Format
from lowbit.methods import Count, Method, Model, _training
from lowbit.solvers import integers, tuning, whole


@dataclass(frozen=True)
class KLRounding(Method):
    """steps: of descent. batch: windows a step. rate: of v and of ranges at the first step."""

    steps: Count = 200
    batch: Count = 8
    rate: float = 0.002

    needs: ClassVar[tuple[str, ...]] = ()
    weight_bytes: ClassVar[int] = 17

    def refusal(self, format: Format) -> str:
        return integers.refusal(format)

    def finish(self, model: Model) -> None:
        pieces = {}
        for name, quantized in model.quantized.items():
            original = model.original(name)
            pieces[name] = integers.Rounding(quantized.decode() if original is None else original, quantized, self.rate)
        _training.finish(model, pieces, {}, whole.divergence, tuning.Settings(self.steps, self.batch, "sign"))

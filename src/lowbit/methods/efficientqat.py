"""efficientqat - one block at a time, its weights, scales and zeros trained with rounding in the loop.

In / Out  a block with solved matrices in integer formats, its inputs, the outputs it should give -> other codes, scales and
          zeros. Alone, as efficientqat(int2-g64-asym), gptaq makes the start.
Idea      value = (clamp(round(w / scale + zero)) - zero) * scale; gradients of the squared error of the block's output pass
          through round() unchanged to w, scale and zero, and Adam follows them. A weight may go as far as it likes, unlike
          autoround's, which stays within half a step.
          Rates are relative, in steps of the grid and in shares of the scale, so that they fit every model.
Source    EfficientQAT (2407.11062), section 3.2: block-wise training of all parameters (Block-AP).
Defaults  Cosine decay to a 20th, as in the paper, which makes 4096 steps of 2 windows at absolute rates of 1e-5 for weights and
          1e-4 for scales; here fewer and larger ones from a better start, since the calibration text is shorter.
Figures   A block of lowbit-tiny at int2-g128-asym, 32 windows of 256 tokens, share of the held-out loss that is left: 0.85
          after 100 steps at rate 0.002; after 60 at 0.005 0.89, at 0.02 all of it.
Traps     All weights are trained: with little text it learns that text. Windows held out decide, but give it many samples.
          Its second phase, training the scales end to end, is training's, not this file's.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowbit.formats import Format, Grid, Quantized
from lowbit.methods import Block, Count, Method, _training
from lowbit.solvers import integers, tuning
from lowbit.solvers.trained import Trained


class Latent:
    """One matrix: its latent weights as moves in steps of the first grid, factors of its scales, its zeros."""

    def __init__(self, original: Tensor, start: Quantized, rate: float, scale_rate: float) -> None:
        self.start = start
        found = start.grid
        self._latent, self._full_scale = integers.latent(original, start, integers.MARGIN), found.full_scale
        self._scale = found.scale
        self.move = Trained(torch.zeros_like(self._latent), rate)
        self.factor = Trained(torch.ones_like(found.scale), scale_rate, 0.1, 10.0)
        self.zero = None if found.zero is None else Trained(found.zero, scale_rate)
        self.trained = [t for t in (self.move, self.factor, self.zero) if t is not None]

    def grid(self) -> Grid:
        """The grid with scales and zeros as they are now."""
        zero = None if self.zero is None else self.zero.value
        return integers.grid(self.start, self._scale * self.factor.value, zero)

    def _steps(self, found: Grid) -> Tensor:
        return integers.steps(self._latent + self.move.value * self._full_scale, found)

    def value(self) -> Tensor:
        found = self.grid()
        return integers.weight(self._steps(found), found)

    def quantized(self) -> Quantized:
        """The matrix as it is stored."""
        found = self.grid()
        return integers.quantized(self._steps(found), found, self.start)


@dataclass(frozen=True)
class EfficientQAT(Method):
    """steps: of descent. batch: windows a step. rate: of weights, in steps of the grid. scale_rate: of scales, as a share."""

    format: str = ""
    steps: Count = 400
    batch: Count = 4
    rate: float = 0.002
    scale_rate: float = 0.002

    needs: ClassVar[tuple[str, ...]] = ()
    start: ClassVar[str] = "gptaq"

    def refusal(self, format: Format) -> str:
        return integers.refusal(format)

    def tune(self, block: Block, inputs: list[Tensor], targets: list[Tensor]) -> None:
        pieces = {n: Latent(block.originals[n], q, self.rate, self.scale_rate) for n, q in block.quantized.items()}
        settings = tuning.Settings(self.steps, self.batch, "adam", decay="cosine")
        _training.train(block, pieces, {}, inputs, targets, settings)

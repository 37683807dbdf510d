"""os_plus - channels of inputs are shifted to the middle of their range, and those that reach beyond a threshold scaled down.

In / Out  a block and hidden states that enter it -> the same function. Scales are folded into norms and linears; shifts happen
          while running (the side `shift`), before inputs are rounded. Follow it by a solver and `act`.
Idea      z = (min + max) / 2 of every channel; then s = max(1, reach / t), so that only channels beyond t are scaled. t is
          the one of a grid from the greatest reach down to a tenth of it that leaves the least error of what reads them, inputs
          and weights rounded.
Source    Outlier Suppression+ (2304.09145), section 3.
Defaults  grid 50 (the paper: 100 or more); shift true where the range is not around 0 (the paper leaves LLaMA unshifted).
Traps     The error is that of each linear's output, the paper's for queries and keys is that of the attention. Shifts cost an
          addition a token, and their effect on the outputs is kept in floats.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lowbit.architectures import Fold
from lowbit.core.errors import CalibrationError
from lowbit.kernels.activation import fake
from lowbit.methods import Block, Count, Linear, Method, _inputs
from lowbit.methods._taken import AT_ONCE, Formats
from lowbit.statistics import Stats
from lowbit.transforms import fold as folding

SIDE = "shift"
LEAST = 0.1
FLOOR = 1e-5


@dataclass(frozen=True)
class OSPlus(Method):
    """grid: thresholds that are tried. shift: whether channels are shifted while running."""

    grid: Count = 50
    shift: bool = True

    needs: ClassVar[tuple[str, ...]] = ("max_magnitude",)
    takes: ClassVar[Formats] = AT_ONCE
    needs_folds: ClassVar[bool] = True

    def around(self, linear: Linear) -> str:
        """The side of one linear."""
        return SIDE if self.shift else ""

    @torch.no_grad()
    def rewrite(self, block: Block, stats: dict[str, Stats]) -> None:
        """Scale along the folds of the block, then shift the inputs of its linears."""
        if block.samples is None:
            raise CalibrationError(f"os_plus: {block.name} has no hidden states to try scales on. Give a calibration text.")
        for fold in folding.resolve(block.folds, [name for name, _ in block.module.named_modules()]):
            seen = _inputs.sample(block, [name for name in fold.targets if name in block.linears][:1])
            for x in seen.values():
                scales = folding.gather(self._scales(block, fold, x), fold, block.heads)
                source: Any = block.module.get_submodule(fold.source).weight
                scales = folding.storable(source, scales, fold.offset) if source.dim() == 1 else scales
                folding.apply(block.module, fold, scales, block.heads)
        if self.shift:
            for name, x in _inputs.sample(block, list(block.linears)).items():
                middle = self._middle(x).to(torch.float16)
                added = block.linears[name].weight.double() @ middle.double()
                block.parts[name] = {"shift_input": middle, "shift_output": added.float()}

    def _middle(self, x: Tensor) -> Tensor:
        """z [in] of inputs x [tokens, in]."""
        return (x.amax(0) + x.amin(0)) / 2 if self.shift else torch.zeros_like(x[0])

    def _scales(self, block: Block, fold: Fold, x: Tensor) -> Tensor:
        """The scales [in] of the readers' inputs x [tokens, in] with the least error."""
        readers = [name for name in fold.targets if name in block.linears]
        x = x - self._middle(x)
        reach = x.abs().amax(0).clamp_min(FLOOR)
        tried: list[tuple[float, Tensor]] = []
        for step in range(self.grid):
            threshold = reach.max() * (1 - (1 - LEAST) * step / self.grid)
            scales = (reach / threshold).clamp_min(1)
            tried.append((sum(self._error(block, name, x, scales) for name in readers), scales))
        return min(tried, key=lambda pair: pair[0])[1]

    def _error(self, block: Block, name: str, x: Tensor, scales: Tensor) -> float:
        """Squared error of one reader's output when its inputs are divided by `scales`."""
        weight, activation = block.linears[name].weight.float(), block.activations.get(name)
        scaled = weight * scales
        rounded = block.formats[name].fit(scaled, search=False).quantize(scaled).decode()
        inner = x / scales
        inner = inner if activation is None else fake(inner, activation)
        return float((inner @ rounded.T - x @ weight.T).square().sum())

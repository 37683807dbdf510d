"""moving - a solved matrix whose codes move too: a few at a time, where a buffer of steps has drifted farthest.

In / Out  Quantized -> a piece for solvers/tuning.py, as solvers/continuous.py, and `move`, to be called between steps.
Idea      Descent moves a buffer of the matrix' own size by the gradients of its values; the values stay those of codes. Between
          steps values plus buffer are rounded to nearest, and of the codes that would change a share with the largest drift
          does; their buffer begins at 0 again. Any format that encodes: numbers, vectors, tiles of a trellis.
Source    PV-Tuning (2405.14852), algorithm 2: the P step on a subspace of the codes.
"""

import torch
from torch import Tensor

from lowbit.formats import Grid, Quantized
from lowbit.solvers.continuous import Continuous
from lowbit.solvers.trained import Trained


class Moving(Continuous):
    """One matrix. code_rate: of the buffer, as a share of the values' root mean square. share: of steps that may change."""

    def __init__(self, start: Quantized, rate: float, code_rate: float, share: float) -> None:
        super().__init__(start, rate)
        self.codes = start.codes.clone()
        self._share = share
        inner = start.grid.inner(start.codes)
        self.drift = Trained(torch.zeros_like(inner), code_rate * float(inner.square().mean().sqrt() or 1))
        self.trained.append(self.drift)

    def _shifted(self, values: Tensor) -> Tensor:
        return values + self.drift.value

    def move(self) -> None:
        """Let codes follow where the drift is largest."""
        height, width, count = self.start.format.step
        grid = Grid(self.start.format.core, self._parts(), self.start.shape)
        drift = self.drift.value.detach()
        wanted = grid.encode(grid.inner(self.codes) + drift)
        rows, columns = wanted.shape[0], wanted.shape[1] // count
        changed = (wanted != self.codes).view(rows, columns, count).any(2)
        size = drift.view(rows, height, columns, width).square().sum((1, 3)).masked_fill_(~changed, 0.0)
        most = max(1, int(self._share * size.numel()))
        chosen = torch.zeros_like(changed).flatten()
        chosen[size.flatten().argsort(descending=True, stable=True)[:most]] = True
        chosen = chosen.view_as(changed) & (size > 0)
        self.codes.copy_(torch.where(chosen.repeat_interleave(count, 1), wanted, self.codes))
        freed = chosen.repeat_interleave(height, 0).repeat_interleave(width, 1)
        self.drift.value.data.masked_fill_(freed, 0.0)

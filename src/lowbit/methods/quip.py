"""quip - rounding with feedback in a basis of random orthogonal matrices.

In / Out  W [out, in], H = E[x xT] -> Quantized.
Idea      In a random basis no weight and no direction of H stands out (incoherence), so one scale for the whole matrix is
          enough: rho times the rms of the weights is the end of the range, and 2**bits levels are spread evenly between its
          ends. Columns are rounded in order with the best linear feedback (LDLQ). The basis is a side of the format:
          int2-tensor-floatzero-kron is the paper's; int2-row-floatzero-kron with rho=0 has searched scales and zeros for each
          row instead and is better.
Source    QuIP (2307.13304), algorithms 1 to 3, without the rescaling of inputs by diag(H).
Defaults  damp 0.01, rho 2.4 (paper); sweeps 0: its greedy updates, off in most of its runs, are coordinate descent.
Figures   lowbit-tiny, 64 windows, KL in milli-nats on books / docs / wikitext2: int2-row-floatzero-kron, rho=0, sweeps=3,
          2.22 bits: 653 / 637 / 1115; int2-row-floatzero-had, rho=1.5, 2.14 bits: 613 / 629 / 1097; int2-row-kron,
          sweeps=3: 800 / 807 / 1328; gptq(int2-g128) 747 / 797 / 1278.
          8 windows of 1024 tokens, bundled / pydoc (4 windows): int2-tensor-floatzero-kron, 2.15 bits: 2200 / 1588;
          quip_sharp(e8p2) 787 / 593. Synthetic layer, relative loss: rho 2.4 0.0413, 1.6 0.0283; int2-row-kron 0.0382, with
          gptq 0.0286.
Traps     rho sets scales only where a format has a float zero: without one, levels are not symmetric about 0. At 2 bits 2.4 is
          wide: levels at 0.8 and 2.4 of the rms; best without feedback are 0.45 and 1.51.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowbit.formats import Format, Grid, Quantized, shelf
from lowbit.methods import Method
from lowbit.solvers import grid
from lowbit.statistics import Stats


@dataclass(frozen=True)
class QuIP(Method):
    """damp: added to H, relative to the mean of its diagonal. rho: end of the range in rms of the weights; 0: searched scales.

    sweeps: of coordinate descent.
    """

    format: str = ""
    damp: float = 0.01
    rho: float = 2.4
    sweeps: int = 0

    needs: ClassVar[tuple[str, ...]] = ("second_moment",)

    def solve(self, weight: Tensor, stats: Stats, format: Format) -> Quantized:
        moment = stats.get("second_moment")
        if moment is None or not stats.tokens:
            return grid.unseen(weight, format, "nearest values in the random basis")
        given = grid.problem(moment, stats.tokens)
        return grid.solve(weight, given, format, damp=self.damp, order="natural", sweeps=self.sweeps, fit=self._fitted)

    def _fitted(self, format: Format, weight: Tensor, moment: Tensor) -> Grid:
        """The grid of 2**bits levels from -rho to rho times the rms of `weight`."""
        found = grid.searched(format, weight, moment)
        if format.zero != "float" or not self.rho:
            return found
        top = format.dtype.codes - 1
        scale = torch.full_like(found.scale, 2 * self.rho / top * float(weight.square().mean().sqrt().clamp_min(1e-30)))
        parts = shelf.get(format.rule).rescale(format, found.parts, scale)
        return Grid(format, {**parts, "zero": torch.full_like(parts["zero"], top / 2)}, found.shape)

"""qtip - trellis codes in a turned basis, tile after tile with feedback.

In / Out  W [out, in], H = E[x xT] -> Quantized in a trellis format.
Idea      Random signs and Hadamard matrices make weights Gaussian (sides/had.py). A trellis code comes within 0.4 dB of what
          any code can do for a Gaussian source; each tile of 16 x 16 is the path of a Viterbi search, and its error goes into
          the columns that follow by the block factor H = L D LT (solvers/ldl.py).
Source    QTIP (2406.11235), algorithm of section 3 with the feedback of QuIP# (2402.04396); codes: dtypes/trellis.py.
Defaults  trellis2: two bits a weight. damp 0.01. The paper's fine-tuning is a step of its own: `qtip(trellis2) + block_tuning`.
Figures   On a synthetic layer in the turned basis, relative loss at 2, 3, 4 bits: 0.028, 0.0066, 0.0017 (int-g128 with descent:
          0.050, 0.012, 0.0033).
Traps     No order of inputs and no descent: after the turn diag(H) is flat, and descent over tiles was measured useless.
          A full search of 65536 states costs 20 to 50 us a weight on two cores: trellis_short2 costs 3, at 0.3 dB.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowbit.formats import Format, Quantized
from lowbit.methods import Method
from lowbit.methods._taken import Formats
from lowbit.solvers import grid
from lowbit.statistics import Stats


@dataclass(frozen=True)
class QTIP(Method):
    """damp: added to H, relative to the mean of its diagonal."""

    format: str = "trellis2"
    damp: float = 0.01

    needs: ClassVar[tuple[str, ...]] = ("second_moment",)
    takes: ClassVar[Formats] = Formats("a trellis code", ("trellis2", "trellis_short2"), lambda format: format.step[0] > 1)

    def solve(self, weight: Tensor, stats: Stats, format: Format) -> Quantized:
        moment = stats.get("second_moment")
        if moment is None or not stats.tokens:
            return grid.unseen(weight, format, "nearest values")
        return grid.solve(weight, grid.problem(moment, stats.tokens), format, damp=self.damp, order="natural", sweeps=0)

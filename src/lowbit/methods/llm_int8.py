"""llm_int8 - 8 bits on both sides, but for the input columns that reach far in a call: those multiply as floats.

In / Out  W [out, in] -> Quantized in int8-row by nearest values; declares how its inputs are rounded: int8-token, beyond 6.
          A whole sentence: llm_int8, or smoothquant + llm_int8.
Idea      O = columns with some |x| >= beyond in this call. y = s_x s_w (q_x . q_w) over the others + x_O W_O^T: a token's scale
          never has to reach an outlier, and the few columns of O cost little. O is found at every call, nothing is stored.
Source    LLM.int8() (2208.07339), section 3; the row of W decoded from int8 for O too, as bitsandbytes does.
Defaults  beyond 6.0 (paper).
Figures   lowbit-tiny, KL in milli-nats on books / docs / wikitext2 (windows of 2048 tokens): 1.2 / 1.4 / 2.3, half of the best
          plain W8A8 (2.5 / 2.4 / 4.5); its inputs reach 6 in many columns, which then multiply as floats.
Traps     Which columns are floats depends on all tokens of a call, so a token's result depends on what is computed beside it.
          Where no input reaches 6 it is plain W8A8: act(int8-token, beyond=3) lowers the bar for any solver.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowbit import formats
from lowbit.formats import Format, Quantized
from lowbit.kernels.activation import Activation
from lowbit.methods import Method
from lowbit.solvers import grid
from lowbit.statistics import Stats


@dataclass(frozen=True)
class LLMInt8(Method):
    """format: of the weights. beyond: columns that reach so far in a call stay floats."""

    format: str = "int8-row"
    beyond: float = 6.0

    needs: ClassVar[tuple[str, ...]] = ()

    def solve(self, weight: Tensor, stats: Stats, format: Format) -> Quantized:
        return grid.nearest(weight, format, search=False)

    def activation(self) -> Activation:
        """What it declares."""
        return Activation(formats.parse("int8-token"), beyond=self.beyond)

"""lnq - tables of values for each row and codes, in turn the best for each other in the layer's output error.

In / Out  W [out, in], H = E[x xT] -> Quantized.
Idea      Start: k-means weighted by diag(H), one pass of feedback. Then in turn: codes by coordinate descent over the inputs,
          tables by least squares (solvers/tables.py). Neither step raises tr(E H ET).
Source    LNQ, of GuidedQuant (2505.07004), layerwise_quantize.py, with the second moment in place of guided ones.
Defaults  sweeps 4 (the paper: 3 rounds of 4 sweeps from SqueezeLLM's nearest values; feedback before saves most of them).
Figures   lowbit-tiny, 8 windows of 1024 tokens, KL in milli-nats on bundled / pydoc (4 windows):
          lut3-row, 3.28 bits: 209 / 183; squeezellm 261 / 209; gptq(int3-g128), 3.13 bits: 248 / 193.
          Synthetic layer, relative loss: lut3-row 0.0070, squeezellm 0.0181; gptq(int3-row) 0.0108.
Traps     Without tables it would be gptq: other formats are refused.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowbit.formats import Format, Quantized
from lowbit.methods import Method
from lowbit.methods._taken import Formats
from lowbit.solvers import grid, tables
from lowbit.statistics import Stats


@dataclass(frozen=True)
class LNQ(Method):
    """damp: added to H, relative to the mean of its diagonal. sweeps: of coordinate descent, new tables before each."""

    format: str = ""
    damp: float = 0.01
    sweeps: int = 4

    needs: ClassVar[tuple[str, ...]] = ("second_moment",)
    takes: ClassVar[Formats] = Formats(
        "a table of values for each row", ("lut4-row", "lut3-row", "lut2-row"), lambda format: format.rule == "lut"
    )

    def solve(self, weight: Tensor, stats: Stats, format: Format) -> Quantized:
        moment = stats.get("second_moment")
        if moment is None or not stats.tokens:
            quantized = grid.nearest(weight, format, search=True)
            quantized.report["fallback"] = "no input was seen: k-means of all weights alike"
            return quantized
        given = grid.problem(moment, stats.tokens)
        return grid.solve(weight, given, format, damp=self.damp, sweeps=self.sweeps, refit=tables.refit)

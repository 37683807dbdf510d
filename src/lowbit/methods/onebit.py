"""onebit - the sign of each weight, a factor for each row and each input: a start for training.

In / Out  W [out, in] -> Quantized in a format with the side svid ("binary-row-svid").
Idea      W is about sign(W) * (a bT), a and b the first singular vectors of |W|: b is the side's (sides/svid.py), a the row's
          scale, the weighted mean of |w| / b with weights b^2. Needs no inputs. `onebit + block_tuning` trains a and b.
Source    OneBit (2402.11295), sections 3.2 and 3.4: the start of its distillation.
Defaults  binary-row-svid: 1 + 16 / in + 16 / out bits a weight.
Traps     Alone it gives no usable model; the paper trains all weights end to end from here. `gptq(binary-row-svid)` rounds the
          signs with feedback instead.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowbit.formats import Format, Quantized
from lowbit.methods import Method
from lowbit.methods._taken import Sided
from lowbit.sides.svid import Svid
from lowbit.solvers import grid
from lowbit.statistics import Stats


@dataclass(frozen=True)
class OneBit(Method):
    """format: with the side svid."""

    format: str = "binary-row-svid"

    needs: ClassVar[tuple[str, ...]] = ()
    takes: ClassVar[Sided[Svid]] = Sided("a factor for each input", ("binary-row-svid",), Svid)

    def solve(self, weight: Tensor, stats: Stats, format: Format) -> Quantized:
        self.takes.of(format)
        parts, inner = format.begin(weight)
        fitted = format.core.fit(inner, parts["input_vector"].float().square())
        found = Quantized(format, fitted.encode(inner), fitted.parts | parts, fitted.shape)
        found.report["error"] = grid.weight_error(weight, found)
        return found

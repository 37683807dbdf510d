"""rtn - round to nearest: every weight to the nearest value of its format.

In / Out  W [out, in] -> Quantized. Without calibration text, but for search=weighted.
Idea      search=none: scales from the range of each group. mse: scales (and zeros) of least squared error. weighted: of least
          squared error times the mean square of the input that each weight meets, which is the output's error as far as
          inputs are uncorrelated.
Source    Nagel et al. 2021 (2106.08295), section 3; weighted: the importance matrix of llama.cpp.
Defaults  search=none: the rule that "RTN" means in papers.
Figures   lowbit-tiny, KL in milli-nats on books / docs / wikitext2, int4-g128-asym: 70.5 / 84.7 / 141.8.
Traps     Symmetric integers are on the signed-max grid, which is better than the usual one (formats/symmetric.py).
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from lowbit.formats import Format, Quantized
from lowbit.methods import Method
from lowbit.solvers import grid
from lowbit.statistics import Stats


@dataclass(frozen=True)
class RTN(Method):
    """Round to nearest. search: how scales are chosen."""

    format: str = ""
    search: Literal["none", "mse", "weighted"] = "none"

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("second_moment",) if self.search == "weighted" else ()

    def solve(self, weight: Tensor, stats: Stats, format: Format) -> Quantized:
        moment = stats.get("second_moment") if self.search == "weighted" else None
        importance = None if moment is None or not stats.tokens else moment.diagonal()
        quantized = grid.nearest(weight, format, self.search != "none", importance)
        if self.search == "weighted" and importance is None:
            quantized.report["fallback"] = "no input was seen: scales searched without weights"
        return quantized

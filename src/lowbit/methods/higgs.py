"""higgs - rounding without data in a turned basis, to grids that are best for Gaussian numbers.

In / Out  W [out, in] -> Quantized. Without calibration text.
Idea      Turned by random signs and a Hadamard matrix, weights are as good as Gaussian, whatever they were. So one grid,
          computed once, is the best for all matrices: a scale from the rms of a group, then the nearest point. The relative
          error t^2 is the same in every layer and known beforehand; perplexity grows in proportion to it (the paper's theorem).
Source    HIGGS (2411.17525).
Defaults  None: the format says all. Paper: groups of 1024 turned each by itself; here the whole width is turned.
Figures   lowbit-tiny, 8 windows of 1024 tokens, KL in milli-nats on bundled / pydoc (4 windows):
          higgs2x256, 4.07 bits: 83 / 66; gptq(higgs2x256) 51 / 40.
          Relative error of any matrix: higgs2x16 0.108, higgs2x64 0.030, higgs2x256 0.0079.
Traps     gptq(higgs2x256) rounds to the same grid with feedback: better as soon as there is text.
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
class HIGGS(Method):
    """format: higgs2x16, higgs2x64, higgs2x256, higgs4x256, with -g1024 or -row for more scales; higgs1x16-row-had."""

    format: str = ""

    needs: ClassVar[tuple[str, ...]] = ()
    takes: ClassVar[Formats] = Formats(
        "one of its grids for Gaussian weights", ("higgs2x256", "higgs2x16"), lambda format: format.element.startswith("higgs")
    )

    def solve(self, weight: Tensor, stats: Stats, format: Format) -> Quantized:
        return grid.nearest(weight, format, search=True)

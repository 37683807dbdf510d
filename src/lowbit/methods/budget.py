"""budget - bits where they count: a mean number of bits, shared out over the layers by what each is worth.

In / Out  a declaration, no verb: beside a solver it lets the run choose each layer's format from the family of the solver's
          own. Linears that engines fuse (q, k, v; gate, up; all experts of a block) share one.
Idea      For small errors the divergence of a quantized model is KL = sum over l of a_l t_l^2, with t_l^2 = |Q - W|^2 / |W|^2.
          a_l comes from Gaussian noise in layer l alone (pipeline/sensitivity.py), t^2 of each format from the weights; the
          least sum within the bytes is a knapsack (solvers/allocation.py). The allocation and the best uniform format within
          the same bytes are then both quantized, measured on held-out text, and the better one is kept (pipeline/budgeted.py).
Source    HIGGS (2411.17525), linearity theorem. That allocations can lose to the uniform model: exllamav3, issue 108.
Defaults  8 windows of 512 tokens from all over the calibration text, two sizes of noise; formats from 1.5 to 8 bits.
Traps     bits counts all that is stored of the layers: codes, scales, zeros, sides. 3.0 is therefore less than int3-g128 takes,
          and 2.5 is less than trellis2.5. Below about 3 bits errors interact and the sum says less: hence the second run.
          Of integers there is none between int3 and int4: at 3.5 bits the uniform rival is int3, and is smaller.
"""

import re
from dataclasses import dataclass
from typing import Annotated

from lowbit import formats
from lowbit.core.errors import FormatError, RecipeError
from lowbit.methods import Count, Method, Range

FAMILY = "int4-g128-asym"
"""The family of a solver without a format."""
RATES = ("1.5", "2", "2.5", "3", "3.5", "4", "5", "6", "7", "8")
MOST = 16.0


@dataclass(frozen=True)
class Budget(Method):
    """bits: mean of the layers that share, all stored bits counted. windows, length: of text to measure on. seed: of noise."""

    bits: Annotated[float, Range(1, MOST)] = 4.0
    windows: Count = 8
    length: Annotated[int, Range(2)] = 512
    seed: int = 0

    def family(self, format: str) -> tuple[str, ...]:
        """The formats that a linear may get whose solver names `format`, by rising rate. Raises RecipeError where it is one.

        They differ in the number in their head alone: int4-g64 stands for int2-g64 .. int8-g64.
        """
        head, *words = (format or FAMILY).split("-")
        found = re.fullmatch(r"(\D+)[\d.]+", head)
        names = ["-".join([f"{found[1]}{rate}", *words]) for rate in RATES] if found else []
        known = tuple(name for name in names if _exists(name))
        if len(known) < 2:
            raise RecipeError(f"budget({self.bits}): {format} has no relatives of other rates. Use int4-g128-asym or trellis2.")
        return known


def _exists(name: str) -> bool:
    """Whether there is a format called `name`."""
    try:
        formats.parse(name)
    except FormatError:
        return False
    return True

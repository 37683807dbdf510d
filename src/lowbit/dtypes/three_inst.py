"""three_inst - trellis codes of 1 to 8 bits from a product and a sum: two half-precision numbers cut out of it and added.

In / Out  values of root mean square 1.244 [16 R, in] -> codes [R, in * 16] in uint8 -> values; see _trellis.py.
Idea      h = 89226354 * state + 64248484 mod 2**32; (h & 0x8FFF8FFF) ^ 0x3B603B60 is read as two half-precision numbers and
          these are added in half precision.
Source    QTIP (2406.11235), 3INST; exllamav3 codebook 0 is the same.
Figures   Mean squared error on N(0,1), best scale: .266 .0683 .0176 .0046 at 1, 2, 3, 4 bits.
Traps     A sum in single precision differs in 27 707 of the 65 536 states.
"""

from torch import Tensor

from lowbit.dtypes._hash import halves, product
from lowbit.dtypes._trellis import Trellis, whole

EXAMPLES = ("three_inst2", "three_inst3", "three_inst4")


def rule(states: Tensor) -> Tensor:
    """One value of each state [n, 1]."""
    pair = halves((product(states, 89226354, 64248484) & 0x8FFF8FFF) ^ 0x3B603B60)
    return pair[:, :1] + pair[:, 1:]


def element(number: str) -> Trellis:
    return Trellis(f"three_inst{number}", whole("three_inst", number, 8), rule)

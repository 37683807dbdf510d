"""mcg - trellis codes of 1 to 8 bits from one product: the sum of two half-precision numbers cut out of it.

In / Out  values of root mean square 1.244 [16 R, in] -> codes [R, in * 16] in uint8 -> values; see _trellis.py.
Idea      h = 0xCBAC1FED * state mod 2**32; (h & 0x8FFF8FFF) ^ 0x3B603B60 is read as two half-precision numbers and these are
          added in half precision.
Source    exllamav3 codebook 1 ("mcg"); the form is 3INST of QTIP (2406.11235) without the addition.
Figures   Mean squared error on N(0,1), best scale: .266 .0687 .0174 .0045 at 1, 2, 3, 4 bits.
"""

from torch import Tensor

from lowbit.dtypes._hash import halves, product
from lowbit.dtypes._trellis import Trellis, whole

EXAMPLES = ("mcg2", "mcg3", "mcg4")


def rule(states: Tensor) -> Tensor:
    """One value of each state [n, 1]."""
    pair = halves((product(states, 0xCBAC1FED) & 0x8FFF8FFF) ^ 0x3B603B60)
    return pair[:, :1] + pair[:, 1:]


def element(number: str) -> Trellis:
    return Trellis(f"mcg{number}", whole("mcg", number, 8), rule)

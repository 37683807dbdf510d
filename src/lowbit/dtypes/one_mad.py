"""one_mad - trellis codes of 1 to 8 bits from one multiply-and-add and the sum of its four bytes.

In / Out  values of variance 1 [16 R, in] -> codes [R, in * 16] in uint8 -> values; see _trellis.py.
Idea      h = 34038481 * state + 76625530 mod 2**32; value = (sum of the four bytes of h - 510) / 147.800537.
Source    QTIP (2406.11235), 1MAD.
Figures   Mean squared error on N(0,1), best scale: .270 .0689 .0175 .0045 at 1, 2, 3, 4 bits.
"""

from torch import Tensor

from lowbit.dtypes._hash import byte_sum, product
from lowbit.dtypes._trellis import Trellis, whole

EXAMPLES = ("one_mad2", "one_mad3", "one_mad4")


def rule(states: Tensor) -> Tensor:
    """One value of each state [n, 1]."""
    return (byte_sum(product(states, 34038481, 76625530)) - 510).double()[:, None] / 147.800537


def element(number: str) -> Trellis:
    return Trellis(f"one_mad{number}", whole("one_mad", number, 8), rule)

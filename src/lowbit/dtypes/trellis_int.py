"""trellis_int - trellis codes of 1 to 8 bits whose values are whole numbers of 8 bits: for integer dot products.

In / Out  values of root mean square 36.95 [16 R, in] -> codes [R, in * 16] in uint8 -> values -126 .. 126; see _trellis.py.
Idea      h = 0xCBAC1FED * state mod 2**32; value = sum of the four bytes of (h & 0x3F3F3F3F) - 126: what vpdpbusd, dp4a or an
          int8 tile takes as it is. Costs up to 0.17 dB against trellis2.
Source    ik_llama.cpp, pull request 505 (IQ2_KT .. IQ4_KT; the number is its own).
Figures   Mean squared error on N(0,1), best scale, over the variance: .0707 .0179 .0045 at 2, 3, 4 bits.
"""

from torch import Tensor

from lowbit.dtypes._hash import byte_sum, product
from lowbit.dtypes._trellis import Trellis, whole

EXAMPLES = ("trellis_int2", "trellis_int3", "trellis_int4")


def rule(states: Tensor) -> Tensor:
    """One value of each state [n, 1]."""
    return (byte_sum(product(states, 0xCBAC1FED) & 0x3F3F3F3F) - 126)[:, None]


def element(number: str) -> Trellis:
    return Trellis(f"trellis_int{number}", whole("trellis_int", number, 8), rule)

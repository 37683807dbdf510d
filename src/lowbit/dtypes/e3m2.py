"""e3m2 - 6-bit float with 3 exponent and 2 fraction bits.

In / Out  values float -> code in uint8 (sign, exponent, fraction from the top bit down) -> value.
Idea      Greatest value 28, least normal 0.25, least subnormal 0.0625; no special codes.
Source    OCP Microscaling Formats 1.0; ml_dtypes.float6_e3m2fn (same codes).
Traps     Coarser than e2m3 at the top of a group: for weights e2m3 loses less.
"""

from lowbit.dtypes._minifloat import Minifloat


def element(number: str) -> Minifloat:
    return Minifloat("e3m2", exponent=3, fraction=2, bias=3)

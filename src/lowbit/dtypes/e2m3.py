"""e2m3 - 6-bit float with 2 exponent and 3 fraction bits.

In / Out  values float -> code in uint8 (sign, exponent, fraction from the top bit down) -> value.
Idea      Greatest value 7.5, least normal 1, least subnormal 0.125; no special codes.
Source    OCP Microscaling Formats 1.0; ml_dtypes.float6_e2m3fn (same codes).
Traps     Four codes make three bytes: a dense stream of 6 bits.
"""

from lowbit.dtypes._minifloat import Minifloat


def element(number: str) -> Minifloat:
    return Minifloat("e2m3", exponent=2, fraction=3, bias=1)

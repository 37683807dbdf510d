"""e5m2 - 8-bit float with 5 exponent and 2 fraction bits.

In / Out  values float -> code in uint8 (sign, exponent, fraction from the top bit down) -> value.
Idea      Greatest value 57344, least normal 2^-14, least subnormal 2^-16.
Source    OCP OFP8 1.0; torch.float8_e5m2 (same codes).
Traps     Codes 0x7C and 0xFC are infinity, the three above each NaN; values beyond the range become 57344, not infinity.
"""

from lowbit.dtypes._minifloat import Minifloat


def element(number: str) -> Minifloat:
    return Minifloat("e5m2", exponent=5, fraction=2, bias=15, specials=4, infinity=True)

"""e4m3 - 8-bit float with 4 exponent and 3 fraction bits (fn: no infinity).

In / Out  values float -> code in uint8 (sign, exponent, fraction from the top bit down) -> value.
Idea      Greatest value 448, least normal 2^-6, least subnormal 2^-9; 126 values of either sign besides 0.
Source    OCP OFP8 1.0; torch.float8_e4m3fn (same codes).
Traps     Codes 0x7F and 0xFF are NaN. torch turns values above 464 into NaN; here they become 448.
"""

from lowbit.dtypes._minifloat import Minifloat


def element(number: str) -> Minifloat:
    return Minifloat("e4m3", exponent=4, fraction=3, bias=7, specials=1)

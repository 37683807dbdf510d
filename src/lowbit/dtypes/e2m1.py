"""e2m1 - 4-bit float with 2 exponent bits and 1 fraction bit.

In / Out  values float -> code in uint8 (sign, exponent, fraction from the top bit down) -> value.
Idea      Codes 0 .. 7 are 0, 0.5, 1, 1.5, 2, 3, 4, 6; codes 8 .. 15 the same with a minus.
Source    OCP Microscaling Formats 1.0; ml_dtypes.float4_e2m1fn (same codes).
Traps     The value 5 is a tie and goes to 4, the even code; compressed-tensors does the same.
"""

from lowbit.dtypes._minifloat import Minifloat


def element(number: str) -> Minifloat:
    return Minifloat("e2m1", exponent=2, fraction=1, bias=1)

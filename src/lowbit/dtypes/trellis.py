"""trellis - trellis codes of 1 to 8 bits: values of a normal distribution hashed from 16 bits of the stream.

In / Out  values of variance 1 [16 R, in] -> codes [R, in * 16 / V] in uint8 -> values; see _trellis.py.
Idea      value = (sum of the four bytes of state * odd number mod 2**32 - 510) / 147.8, in half precision as exllamav3 does it:
          fma(1024 + sum, fp16 0x1EEE, fp16 0xC931). Whole rates: one value a step (V = 1, "MUL1"). Rates 1.5, 2.5 and 3.5: two
          values a step from two numbers ("MUL2"), half the work of decoding.
Source    QTIP (2406.11235); exllamav3 codebook 2 (MUL1). The pair of numbers of MUL2 is lowbit's own.
Figures   Mean squared error on N(0,1), best scale: .272 .0680 .0174 .0044 at 1, 2, 3, 4 bits; .137 .0352 .0093 at 1.5, 2.5, 3.5
          (the bound 4**-bits: .25 .0625 .0156 .0039; .125 .0313 .0078).
Traps     Best size of the values: 1.1 of the code's at 1 bit, 1.0 at 2, 0.95 at 3, 0.9 at 4.
"""

from lowbit.core.errors import FormatError
from lowbit.dtypes._mul1 import mul1, mul2
from lowbit.dtypes._trellis import Trellis

EXAMPLES = ("trellis1", "trellis1.5", "trellis2", "trellis2.5", "trellis3", "trellis3.5", *(f"trellis{k}" for k in range(4, 9)))


def element(number: str) -> Trellis:
    name = f"trellis{number}"
    if name not in EXAMPLES:
        raise FormatError(f"{name}: trellis codes have 1 to 8 bits, or 1.5, 2.5 and 3.5. Use one of {', '.join(EXAMPLES)}.")
    if "." in number:
        return Trellis(name, round(2 * float(number)), mul2, width=2)
    return Trellis(name, int(number), mul1)

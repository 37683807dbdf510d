"""mxint - microscaling integers: mxint8, blocks of 32 inputs, element q * 2**-6, under a power of two.

In / Out  W [out, in] -> parts {"scale" uint8 [out, in / 32]}, exponent + 127; value = q * 2**-6 * 2**(scale - 127).
Idea      Plain: e = floor(log2 max|w|). search: best of e - 1, e, e + 1 by weighted squared error (_mx.py).
Source    OCP Microscaling Formats (MX) 1.0, section 5.3.4.
Figures   8.25 bits.
Traps     The greatest element is 127/64 = 1.984375: what lies between it and 2 saturates. -128 is used.
"""

from torch import Tensor

from lowbit import dtypes
from lowbit.core.errors import FormatError
from lowbit.formats import Format, Parts, _mx, _words
from lowbit.formats._scales import load

EXAMPLES = ("mxint8",)
POINT = 6
"""Binary places of the element."""


def parse(number: str, words: list[str]) -> Format:
    """The format mxint8; takes no words."""
    if number != "8":
        raise FormatError(f"mxint{number}: microscaling integers have 8 bits. Use mxint8.")
    _words.read("-".join(["mxint8", *words]), words, only=())
    return Format(element="int8", group=(1, 32), scale="e8m0", rule="mxint")


def fit(format: Format, weight: Tensor, importance: Tensor | None, search: bool) -> Parts:
    """Choose the exponents of `weight`; see lowbit.formats."""
    return _mx.fit(format, weight * 2.0**POINT, importance, search, POINT, dtypes.get("int8"))


def expand(format: Format, parts: Parts) -> tuple[Tensor, Tensor | None]:
    """The float32 scale [R, G] of the integers; there is no zero."""
    return load(parts["scale"], "e8m0") * 2.0**-POINT, None

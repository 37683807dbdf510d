"""mxfp - microscaling floats: mxfp4 (e2m1), mxfp6 (e2m3), mxfp8 (e4m3), blocks of 32 inputs under a power of two.

In / Out  W [out, in] -> parts {"scale" uint8 [out, in / 32]}, exponent + 127; value = element * 2**(scale - 127).
Idea      Plain: the specification's floor rule, e = floor(log2 max|w|) - greatest exponent (2, 2, 8). search: best of e - 1, e,
          e + 1 by weighted squared error (_mx.py).
Source    OCP Microscaling Formats (MX) 1.0, section 6.3; compressed-tensors `mxfp4-pack-quantized` and others.
Figures   4.25, 6.25, 8.25 bits. Mean squared error of mxfp4 on N(0,1): 0.01323 plain, 0.01247 searched.
Traps     The floor rule saturates magnitudes between the greatest element and the next power of two. 6 bits are e2m3 here.
"""

from torch import Tensor

from lowbit.core.errors import FormatError
from lowbit.formats import Format, Parts, _mx, _words
from lowbit.formats._scales import load

EXAMPLES = ("mxfp4", "mxfp6", "mxfp8")
ELEMENTS = {"4": "e2m1", "6": "e2m3", "8": "e4m3"}
GREATEST = {"e2m1": 2, "e2m3": 2, "e4m3": 8}


def parse(number: str, words: list[str]) -> Format:
    """The format of mxfp`number`; takes no words."""
    if number not in ELEMENTS:
        raise FormatError(f"mxfp{number}: microscaling floats have 4, 6 or 8 bits. Use mxfp4, mxfp6 or mxfp8.")
    _words.read("-".join([f"mxfp{number}", *words]), words, only=())
    return Format(element=ELEMENTS[number], group=(1, 32), scale="e8m0", rule="mxfp")


def fit(format: Format, weight: Tensor, importance: Tensor | None, search: bool) -> Parts:
    """Choose the exponents of `weight`; see lowbit.formats."""
    return _mx.fit(format, weight, importance, search, GREATEST[format.element], format.dtype)


def expand(format: Format, parts: Parts) -> tuple[Tensor, Tensor | None]:
    """The float32 scale [R, G]; there is no zero."""
    return load(parts["scale"], "e8m0"), None

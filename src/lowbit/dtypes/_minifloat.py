"""_minifloat - floats of 4 to 8 bits: sign in the top bit, then exponent, then fraction; subnormals; no infinity is made.

Idea      round: the step at x is 2**(max(floor(log2|x|), 1 - bias) - fraction bits), read off x's exponent bits; x / step is
          rounded to an integer, ties to even. Dividing by a power of two is exact, so this is the nearest value.
          encode: a rounded value has no more fraction bits than the element keeps: its float32 bits, shifted, are the code.
Source    OCP 8-bit Floating Point Specification 1.0; OCP Microscaling Formats 1.0, section 5.3.
Traps     Beyond the range the result is the end of the range (ml_dtypes and torch give NaN or infinity there, MX wants this).
          -0 has a code of its own. Codes of NaN and infinity are decoded, never made; NaN itself has no code.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lowbit.dtypes._table import look_up, on_device


@dataclass(frozen=True)
class Minifloat:
    """One float type. specials: how many codes at the end of the positive half are infinity or NaN."""

    name: str
    exponent: int
    fraction: int
    bias: int
    specials: int = 0
    infinity: bool = False
    step = (1, 1, 1)

    @property
    def bits(self) -> float:
        return float(1 + self.exponent + self.fraction)

    @property
    def codes(self) -> int:
        return 2 << (self.exponent + self.fraction)

    @property
    def minimum(self) -> float:
        return -self.maximum

    @cached_property
    def maximum(self) -> float:
        return self._magnitude(self.codes // 2 - 1 - self.specials)

    def encode(self, values: Tensor) -> Tensor:
        rounded = self.round(values)
        size = rounded.abs()
        normal = (size.view(torch.int32) >> (23 - self.fraction)) - ((127 - self.bias) << self.fraction)
        tiny = (size * 2.0 ** (self.bias - 1 + self.fraction)).int()
        code = torch.where(size < 2.0 ** (1 - self.bias), tiny, normal)
        return (code + torch.signbit(rounded) * (self.codes // 2)).to(torch.uint8)

    def decode(self, codes: Tensor) -> Tensor:
        return look_up(on_device(self._values, codes.device), codes)

    def round(self, values: Tensor) -> Tensor:
        x = values.float().clamp(self.minimum, self.maximum)
        least = (128 - self.bias) << 23
        step = (x.view(torch.int32) & 0x7F800000).clamp_min_(least).sub_(self.fraction << 23).view(torch.float32)
        return x.div_(step).round_().mul_(step)

    @cached_property
    def _values(self) -> tuple[float, ...]:
        """The value of every code."""
        half = self.codes // 2
        sizes = [self._magnitude(code) for code in range(half - self.specials)]
        sizes += [float("inf") if self.infinity and i == 0 else float("nan") for i in range(self.specials)]
        return tuple(sizes + [-size for size in sizes])

    def _magnitude(self, code: int) -> float:
        exponent, fraction = code >> self.fraction, code & ((1 << self.fraction) - 1)
        if exponent == 0:
            return fraction * 2.0 ** (1 - self.bias - self.fraction)
        return (1 + fraction / (1 << self.fraction)) * 2.0 ** (exponent - self.bias)

"""int - two's complement integers of 2 to 8 bits, stored as offset binary.

In / Out  values float -> code q + 2**(bits-1) in uint8 -> value q in -2**(bits-1) .. 2**(bits-1)-1.
Idea      q = clamp(round(x)), ties to even; the code is unsigned so that one bit stream serves signed and asymmetric grids.
Source    compressed-tensors `pack-quantized`; MLX affine.
Traps     An asymmetric grid uses the same codes 0 .. 2**bits-1; its zero point is a property of the format, not of the element.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.core.errors import FormatError

EXAMPLES = ("int2", "int3", "int4", "int5", "int6", "int7", "int8")


@dataclass(frozen=True)
class Integer:
    """int2 .. int8."""

    bits: int
    step = (1, 1, 1)

    @property
    def name(self) -> str:
        return f"int{self.bits}"

    @property
    def codes(self) -> int:
        return 1 << self.bits

    @property
    def minimum(self) -> float:
        return -float(1 << (self.bits - 1))

    @property
    def maximum(self) -> float:
        return float((1 << (self.bits - 1)) - 1)

    def encode(self, values: Tensor) -> Tensor:
        return (self.round(values) - self.minimum).to(torch.uint8)

    def decode(self, codes: Tensor) -> Tensor:
        return codes.to(torch.float32) + self.minimum

    def round(self, values: Tensor) -> Tensor:
        return values.round().clamp_(self.minimum, self.maximum)


def element(number: str) -> Integer:
    if f"int{number}" not in EXAMPLES:
        raise FormatError(f"int{number}: integers have 2 to 8 bits. Use int2 .. int8.")
    return Integer(int(number))

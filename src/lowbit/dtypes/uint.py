"""uint - the whole numbers 0 .. 2**bits - 1: codes that only say which entry of a table is meant.

In / Out  values float -> code q in uint8 -> value q.
Idea      q = clamp(round(x)), ties to even. Formats that hold tables of their own (lut, aqlm) store their codes so.
Traps     It has no negative values: for weights with a scale alone take int.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.core.errors import FormatError

EXAMPLES = ("uint2", "uint3", "uint4", "uint5", "uint6", "uint7", "uint8")


@dataclass(frozen=True)
class Unsigned:
    """uint2 .. uint8."""

    bits: int
    step = (1, 1, 1)

    @property
    def name(self) -> str:
        return f"uint{self.bits}"

    @property
    def codes(self) -> int:
        return 1 << self.bits

    @property
    def minimum(self) -> float:
        return 0.0

    @property
    def maximum(self) -> float:
        return float((1 << self.bits) - 1)

    def encode(self, values: Tensor) -> Tensor:
        return self.round(values).to(torch.uint8)

    def decode(self, codes: Tensor) -> Tensor:
        return codes.to(torch.float32)

    def round(self, values: Tensor) -> Tensor:
        return values.float().round().clamp_(self.minimum, self.maximum)


def element(number: str) -> Unsigned:
    if f"uint{number}" not in EXAMPLES:
        raise FormatError(f"uint{number}: unsigned codes have 2 to 8 bits. Use uint2 .. uint8.")
    return Unsigned(int(number))

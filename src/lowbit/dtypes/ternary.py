"""ternary - the values -1, 0 and 1: five digits to a byte.

In / Out  values float -> code 0, 1, 2 in uint8 -> value -1, 0, 1.
Idea      q = clamp(round(x), -1, 1), ties to even; 3**5 = 243 fits a byte, so a digit takes 8/5 bits (log2 3 = 1.585).
Source    BitNet b1.58 (2402.17764); GGUF TQ1_0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.core.errors import FormatError


@dataclass(frozen=True)
class Ternary:
    """The only element of this file."""

    name: str = "ternary"
    bits: float = 1.6
    codes: int = 3
    minimum: float = -1.0
    maximum: float = 1.0
    step: tuple[int, int, int] = (1, 1, 1)

    def encode(self, values: Tensor) -> Tensor:
        return (self.round(values) + 1).to(torch.uint8)

    def decode(self, codes: Tensor) -> Tensor:
        return codes.to(torch.float32) - 1

    def round(self, values: Tensor) -> Tensor:
        return values.round().clamp_(-1, 1)


def element(number: str) -> Ternary:
    if number:
        raise FormatError(f"ternary{number}: there is one ternary element. Use ternary.")
    return Ternary()

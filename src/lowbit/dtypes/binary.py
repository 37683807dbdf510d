"""binary - the values -1 and 1: one bit.

In / Out  values float -> code 0 or 1 in uint8 -> value -1 or 1.
Idea      The sign; 0 and above (-0 too) is 1.
Source    XNOR-Net (1603.05279); GGUF Q1_0 (bit set = plus).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.core.errors import FormatError


@dataclass(frozen=True)
class Binary:
    """The only element of this file."""

    name: str = "binary"
    bits: float = 1.0
    codes: int = 2
    minimum: float = -1.0
    maximum: float = 1.0
    step: tuple[int, int, int] = (1, 1, 1)

    def encode(self, values: Tensor) -> Tensor:
        return (values >= 0).to(torch.uint8)

    def decode(self, codes: Tensor) -> Tensor:
        return codes.to(torch.float32) * 2 - 1

    def round(self, values: Tensor) -> Tensor:
        return (values >= 0).to(torch.float32).mul_(2).sub_(1)


def element(number: str) -> Binary:
    if number:
        raise FormatError(f"binary{number}: there is one binary element. Use binary.")
    return Binary()

"""bytes - 8-bit codes as they are.

Layout    packed uint8 [rows, n] = codes: the bit pattern of an 8-bit float, or q + 128 of an integer.
Source    compressed-tensors `float-quantized` (viewed as float8), `int-quantized` (after subtracting 128, as int8).
"""

import torch
from torch import Tensor

BITS = (8,)
WORD = torch.uint8


def pack(codes: Tensor, bits: float) -> Tensor:
    """codes uint8 [rows, n] -> a copy."""
    return codes.clone(memory_format=torch.contiguous_format)


def unpack(packed: Tensor, bits: float, n: int) -> Tensor:
    """packed uint8 [rows, n] -> a copy."""
    return packed[:, :n].clone(memory_format=torch.contiguous_format)


def packed_shape(rows: int, n: int, bits: float) -> tuple[int, int]:
    """Shape of what `pack` gives."""
    return rows, n

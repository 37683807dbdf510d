"""nibbles - two 4-bit codes to a byte, the even input in the low half.

Layout    packed uint8 [rows, ceil(n / 2)]: byte i = code[2i] | code[2i + 1] << 4. The last high half of an odd row is 0.
Source    compressed-tensors `nvfp4-pack-quantized`, `mxfp4-pack-quantized`.
Traps     bitsandbytes has the even element in the high half.
"""

import torch
from torch import Tensor

BITS = (4,)
WORD = torch.uint8


def pack(codes: Tensor, bits: float) -> Tensor:
    """codes uint8 [rows, n] below 16 -> uint8 [rows, ceil(n / 2)]."""
    codes = torch.nn.functional.pad(codes, (0, codes.shape[1] % 2))
    return codes[:, ::2] | (codes[:, 1::2] << 4)


def unpack(packed: Tensor, bits: float, n: int) -> Tensor:
    """packed uint8 [rows, ceil(n / 2)] -> codes uint8 [rows, n]."""
    return torch.stack([packed & 15, packed >> 4], -1).flatten(1)[:, :n].contiguous()


def packed_shape(rows: int, n: int, bits: float) -> tuple[int, int]:
    """Shape of what `pack` gives."""
    return rows, -(-n // 2)

"""trits - five ternary digits to a byte.

Layout    packed uint8 [rows, ceil(n / 5)]: byte i = sum over k of code[5i + k] * 3**k, 0 .. 242. Missing digits are 0.
Source    3**5 = 243. GGUF TQ1_0 holds the same digits as a fraction, ceil(256 * t / 243), first digit first.
Traps     1.6 bits a weight, not log2 3 = 1.585. Bytes above 242 never occur and are refused by nobody.
"""

import torch
from torch import Tensor

BITS = (1.6,)
WORD = torch.uint8


def pack(codes: Tensor, bits: float) -> Tensor:
    """codes uint8 [rows, n] of 0, 1, 2 -> uint8 [rows, ceil(n / 5)]."""
    digits: Tensor = torch.nn.functional.pad(codes, (0, -codes.shape[1] % 5)).unflatten(1, (-1, 5))
    packed = digits[..., 4]
    for k in (3, 2, 1, 0):
        packed = packed * 3 + digits[..., k]
    return packed


def unpack(packed: Tensor, bits: float, n: int) -> Tensor:
    """packed uint8 [rows, ceil(n / 5)] -> codes uint8 [rows, n]."""
    byte = torch.arange(256, device=packed.device)
    digits = torch.stack([byte // 3**k % 3 for k in range(5)], -1).to(torch.uint8)
    return digits.index_select(0, packed.flatten().int()).view(packed.shape[0], 5 * packed.shape[1])[:, :n].contiguous()


def packed_shape(rows: int, n: int, bits: float) -> tuple[int, int]:
    """Shape of what `pack` gives."""
    return rows, -(-n // 5)

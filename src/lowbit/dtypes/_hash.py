"""_hash - the exact arithmetic of computed codes: products mod 2**32 in int64, half-precision numbers by their bits."""

import struct

import torch
from torch import Tensor


def product(states: Tensor, factor: int, added: int = 0) -> Tensor:
    """states * factor + added mod 2**32, for states below 2**16 (int64)."""
    return (states * factor + added) & 0xFFFFFFFF


def byte_sum(words: Tensor) -> Tensor:
    """The sum of the four bytes of each word."""
    return (words & 255) + (words >> 8 & 255) + (words >> 16 & 255) + (words >> 24)


def half(bits: int) -> float:
    """The half-precision number with these bits."""
    return float(struct.unpack("<e", struct.pack("<H", bits))[0])


def halves(words: Tensor) -> Tensor:
    """The high and the low half-precision number of each word, [n, 2] float16."""
    pair = torch.stack([words >> 16, words & 0xFFFF], -1)
    return torch.where(pair > 32767, pair - 65536, pair).to(torch.int16).view(torch.float16)

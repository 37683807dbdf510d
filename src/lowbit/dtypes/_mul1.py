"""_mul1 - normal values from one or two products: the rule of trellis.py and trellis_short.py.

Idea      sum = the four bytes of state * odd number mod 2**32; value = fma(1024 + sum, fp16 0x1EEE, fp16 0xC931), rounded once
          to half precision (1024 + sum is the half-precision number with the bits 0x6400 + sum).
"""

import torch
from torch import Tensor

from lowbit.dtypes._hash import byte_sum, half, product

FIRST, SECOND = 0x83DCD12D, 0xCBAC1FED


def mul1(states: Tensor) -> Tensor:
    """One value of each state [n, 1]."""
    return _value(states, FIRST)[:, None]


def mul2(states: Tensor) -> Tensor:
    """Two values of each state [n, 2]."""
    return torch.stack([_value(states, FIRST), _value(states, SECOND)], 1)


def _value(states: Tensor, factor: int) -> Tensor:
    total = byte_sum(product(states, factor)) + 1024
    return (total.double() * half(0x1EEE) + half(0xC931)).half()

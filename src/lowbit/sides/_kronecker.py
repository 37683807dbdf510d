"""_kronecker - products of two small matrices in the place of one large one.

Idea      n = a b with a and b as near as can be; (L x R) applied to n numbers are two small products, n (a + b) operations.
"""

import functools
import math

import torch
from torch import Tensor

SEED = 0x9E1


def turn(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """(left x right) applied to every row of x [rows, a b]."""
    cube = x.reshape(-1, left.shape[0], right.shape[0])
    return (left @ cube @ right.T).reshape(x.shape)


def sizes(n: int) -> tuple[int, int]:
    """n = a b, a the smallest possible that is not below b."""
    b = next(d for d in range(math.isqrt(n), 0, -1) if n % d == 0)
    return n // b, b


@functools.cache
def factors(n: int, stream: int) -> tuple[Tensor, Tensor]:
    """Two orthogonal matrices, the same for every matrix of this width."""
    generator = torch.Generator().manual_seed(SEED + 2 * n + stream)
    a, b = (orthogonal(size, generator) for size in sizes(n))
    return a, b


def orthogonal(n: int, generator: torch.Generator) -> Tensor:
    """An orthogonal matrix [n, n] drawn alike from all, float16."""
    q, r = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    drawn: Tensor = q * r.diagonal().sign()
    return drawn.half().contiguous()  # as it comes back from a file: products of other strides differ in the last bit


def inverse(factor: Tensor) -> Tensor:
    found: Tensor = torch.linalg.inv(factor.double())
    return found.float()

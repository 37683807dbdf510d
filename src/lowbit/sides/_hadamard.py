"""_hadamard - orthogonal matrices of ones and minus ones, computed for every order that Sylvester and Paley give.

Idea      H_2m = [[H, H], [H, -H]] (Sylvester). For a prime q = 3 mod 4 an order q + 1, for q = 1 mod 4 an order 2 (q + 1), from
          the quadratic residues of q (Paley). An order n = a b c is applied as the Kronecker product of its factors: three
          small products instead of one of n columns.
Traps     Not every multiple of 4 is reached (52, 92, 100, 116, 156, 172 are not): `block` gives the largest divisor that is.
          Paley's first kind is not symmetric: the way back is the transpose.
"""

import functools
import math

import torch
from torch import Tensor

SMALL = 64
"""Greatest power of two that is applied as one product."""
LARGEST = 512
"""Greatest order of Paley that is used: its product is dense."""


def block(n: int) -> int:
    """The largest divisor of `n` that is an order."""
    return next(d for d in range(n, 0, -1) if n % d == 0 and factors(d))


@functools.cache
def factors(n: int) -> tuple[int, ...]:
    """Orders whose product is `n`: one that holds the odd part, then powers of two up to SMALL; () when there are none."""
    twos = (n & -n).bit_length() - 1
    odd = n >> twos
    first = next((j for j in range(twos + 1) if odd == 1 or (odd << j <= LARGEST and _paley(odd << j))), None)
    if first is None:
        return ()
    found = [odd << first] if odd > 1 else []
    rest = twos - (first if odd > 1 else 0)
    steps = math.ceil(rest / 6)
    found += [1 << (rest * (i + 1) // steps - rest * i // steps) for i in range(steps)]
    return tuple(found) or (1,)


def apply(x: Tensor, size: int, back: bool = False) -> Tensor:
    """x [..., n] times an orthonormal Hadamard matrix on every `size` inputs; back: times its transpose."""
    shape = x.shape
    orders = factors(size)
    x = x.reshape(-1, *orders)
    for axis, order in enumerate(orders, 1):
        h = _matrix(order, x.device, x.dtype)
        x = torch.tensordot(x, h, dims=([axis], [0 if back else 1])).movedim(-1, axis)
    return x.reshape(shape)


@functools.lru_cache(maxsize=64)
def _matrix(n: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The matrix [n, n] of an order that is no product here, divided by sqrt(n)."""
    found = _sylvester(n) if n & (n - 1) == 0 else _from_residues(n)
    return (found.double() / math.sqrt(n)).to(device, dtype)


def _sylvester(n: int) -> Tensor:
    found = torch.ones(1, 1)
    while found.shape[0] < n:
        found = torch.cat([torch.cat([found, found], 1), torch.cat([found, -found], 1)])
    return found


def _paley(n: int) -> int:
    """The prime that gives order `n`, or 0."""
    if n % 4 == 0 and _prime(n - 1):
        return n - 1
    return n // 2 - 1 if n % 4 == 0 and n // 2 % 2 == 0 and _prime(n // 2 - 1) and (n // 2 - 1) % 4 == 1 else 0


def _prime(q: int) -> bool:
    return q > 2 and all(q % d for d in range(2, math.isqrt(q) + 1))


def _from_residues(n: int) -> Tensor:
    """Paley's matrix of order `n`."""
    q = _paley(n)
    symbol = torch.full((q,), -1.0)
    symbol[[i * i % q for i in range(1, q)]] = 1
    symbol[0] = 0
    residues = symbol[(torch.arange(q)[:, None] - torch.arange(q)) % q]
    core = torch.ones(q + 1, q + 1)
    core[0, 0] = 0
    core[1:, 1:] = residues
    if n == q + 1:
        core[1:, 0] = -1
        return core + torch.eye(n)
    plus, minus = torch.tensor([[1.0, 1.0], [1.0, -1.0]]), torch.tensor([[1.0, -1.0], [-1.0, -1.0]])
    return torch.kron(core, plus) + torch.kron(torch.eye(q + 1), minus)

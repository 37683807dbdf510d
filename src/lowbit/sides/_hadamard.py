"""_hadamard - orthogonal matrices of ones and minus ones, computed for every order that Sylvester and Paley give.

Idea      H_2m = [[H, H], [H, -H]] (Sylvester). For a power q of an odd prime, q = 3 mod 4, an order q + 1, for q = 1 mod 4 an
          order 2 (q + 1), from the squares of the field of q elements (Paley). An order n = a b c is applied as the Kronecker
          product of its factors: small products instead of one of n columns.
          An element of the field is a polynomial over the integers mod p, written as a number in base p. Powers of a
          primitive element go through all but 0, the even ones are the squares.
Traps     Not every multiple of 4 is reached (92, 116, 156, 172, 184, 188, 232 are not): `block` gives the largest divisor that
          is. Paley's first kind is not symmetric: the way back is the transpose.
"""

import functools
import itertools
import math

import torch
from torch import Tensor

SMALL = 64
"""Greatest power of two that is applied as one product."""
LARGEST = 2048
"""Greatest order of Paley that is used: its product is dense."""


def block(n: int) -> int:
    """The largest divisor of `n` that is an order."""
    return next(d for d in range(n, 0, -1) if n % d == 0 and factors(d))


@functools.cache
def factors(n: int) -> tuple[int, ...]:
    """Orders whose product is `n`: those that hold the odd part, then powers of two up to SMALL; () when there are none."""
    twos = (n & -n).bit_length() - 1
    found = _odd_part(n >> twos, twos)
    if found is None:
        return ()
    rest = n // math.prod(found)
    twos = rest.bit_length() - 1
    steps = math.ceil(twos / 6)
    return (*found, *(1 << (twos * (i + 1) // steps - twos * i // steps) for i in range(steps))) or (1,)


def _odd_part(odd: int, twos: int) -> tuple[int, ...] | None:
    """Orders of Paley whose product is `odd` and as few of so many twos as will do, one order if one will; None: none will."""
    if odd == 1:
        return ()
    whole = next((odd << j for j in range(twos + 1) if odd << j <= LARGEST and _paley(odd << j)), 0)
    if whole:
        return (whole,)
    for part in (d for d in range(3, math.isqrt(odd) + 1, 2) if odd % d == 0):
        left = _odd_part(part, twos)
        right = left and _odd_part(odd // part, twos + (part.bit_length() - math.prod(left).bit_length()))
        if left and right:
            return left + right
    return None


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
    """The power of an odd prime that gives order `n`, or 0."""
    if n % 4:
        return 0
    return next((q for q, kind in ((n - 1, 3), (n // 2 - 1, 1)) if q % 4 == kind and _root(q)), 0)


def _root(q: int) -> int:
    """The prime that `q` is a power of, or 0."""
    p = next((d for d in range(2, math.isqrt(q) + 1) if q % d == 0), q)
    return p if q > 1 and p ** round(math.log(q, p)) == q else 0


def _powers(p: int, k: int) -> list[int]:
    """The powers 0 .. p^k - 2 of a primitive element of the field of p^k elements, each a number in base p."""
    for tail in itertools.product(range(p), repeat=k):  # x^k = tail: the first one whose x is primitive
        element = [1] + [0] * (k - 1)
        found, code = list[int](), 1
        while code not in found[:1] and len(found) < p**k and any(element):
            found.append(code)
            top = element[-1]
            element = [(low + top * t) % p for low, t in zip([0, *element[:-1]], tail, strict=True)]
            code = sum(digit * p**i for i, digit in enumerate(element))
        if len(found) == p**k - 1:
            return found
    raise AssertionError(f"no primitive element of {p}^{k}")  # there always is one


def _residues(q: int) -> Tensor:
    """1 where the difference a - b of two elements is a square, -1 where it is none, 0 where it is 0: [q, q]."""
    p = _root(q)
    k = round(math.log(q, p))
    symbol = torch.full((q,), -1.0)
    symbol[_powers(p, k)[::2]] = 1
    symbol[0] = 0
    weights = p ** torch.arange(k)
    digits = torch.arange(q)[:, None] // weights % p
    return symbol[((digits[:, None] - digits) % p * weights).sum(-1)]


def _from_residues(n: int) -> Tensor:
    """Paley's matrix of order `n`."""
    q = _paley(n)
    core = torch.ones(q + 1, q + 1)
    core[0, 0] = 0
    core[1:, 1:] = _residues(q)
    if n == q + 1:
        core[1:, 0] = -1
        return core + torch.eye(n)
    plus, minus = torch.tensor([[1.0, 1.0], [1.0, -1.0]]), torch.tensor([[1.0, -1.0], [-1.0, -1.0]])
    return torch.kron(core, plus) + torch.kron(torch.eye(q + 1), minus)

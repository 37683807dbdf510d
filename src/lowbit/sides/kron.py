"""kron - a basis of random orthogonal Kronecker factors on inputs and outputs: QuIP's incoherence.

In / Out  W = L C R: C is what the grid holds, L = A x B on the outputs, R on the inputs; parts "input_left" [a, a],
          "input_right" [b, b], "output_left", "output_right", float16.
Idea      n = a b with a and b as near as can be; two orthogonal matrices of sizes a and b, drawn alike from all, turn n numbers
          with n (a + b) products. Stored as they are: what a seed would draw elsewhere need not be the same. Rounded to 16 bits
          they are a little off orthogonal, so C is made with their inverses and nothing is lost but rounding.
Source    QuIP (2307.13304), section 4.
Figures   16 (a^2 + b^2) bits a width: 0.016 bits a weight of 4096 x 4096. The loss inside is that outside within 1e-3.
Traps     A width with a large prime factor has a large a: above LARGEST it is refused.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.core.errors import RequestError
from lowbit.sides import Parts

SEED = 0x9E1
LARGEST = 1024


@dataclass(frozen=True)
class Kronecker:
    """The only side of this file."""

    parts = ("input_left", "input_right", "output_left", "output_right")

    def bits(self, shape: tuple[int, int]) -> int:
        return 16 * sum(size * size for n in shape for size in _sizes(n))

    def fits(self, shape: tuple[int, int]) -> str:
        large = [n for n in shape if _sizes(n)[0] > LARGEST]
        return f"{large[0]} is {' x '.join(map(str, _sizes(large[0])))}, factors up to {LARGEST} only" if large else ""

    def fit(self, weight: Tensor) -> Parts:
        out, inputs = weight.shape
        drawn = [*_factors(inputs, 0), *_factors(out, 1)]
        return {name: factor.to(weight.device) for name, factor in zip(self.parts, drawn, strict=True)}

    def into(self, weight: Tensor, parts: Parts) -> Tensor:
        left, right = (_inverse(parts[f"output_{side}"]) for side in ("left", "right"))
        plain = _turn(weight.float().T.contiguous(), left, right).T.contiguous()
        left, right = (_inverse(parts[f"input_{side}"]) for side in ("left", "right"))
        return _turn(plain, left.T, right.T)

    def decode(self, values: Tensor, parts: Parts) -> Tensor:
        left, right = (parts[f"input_{side}"].to(values.dtype) for side in ("left", "right"))
        plain = _turn(values, left.T, right.T)
        left, right = (parts[f"output_{side}"].to(values.dtype) for side in ("left", "right"))
        return _turn(plain.T.contiguous(), left, right).T.contiguous()

    def moment(self, moment: Tensor, parts: Parts) -> Tensor:
        return self.before(self.before(moment, parts).T.contiguous(), parts)

    def before(self, x: Tensor, parts: Parts) -> Tensor:
        return _turn(x, parts["input_left"].to(x.dtype), parts["input_right"].to(x.dtype))

    def within(self, x: Tensor, parts: Parts, inner: Callable[[Tensor], Tensor]) -> Tensor:
        left, right = (_inverse(parts[f"input_{side}"]).to(x.dtype) for side in ("left", "right"))
        return _turn(inner(self.before(x, parts)), left, right)

    def after(self, y: Tensor, x: Tensor, parts: Parts) -> Tensor:
        return _turn(y, parts["output_left"].to(y.dtype), parts["output_right"].to(y.dtype))


def side(number: str) -> Kronecker:
    if number:
        raise RequestError(f"kron{number}: its sizes follow from the matrix. Use kron.")
    return Kronecker()


def _turn(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """(left x right) applied to every row of x [rows, a b]."""
    cube = x.reshape(-1, left.shape[0], right.shape[0])
    return (left @ cube @ right.T).reshape(x.shape)


def _sizes(n: int) -> tuple[int, int]:
    """n = a b, a the smallest possible that is not below b."""
    b = next(d for d in range(math.isqrt(n), 0, -1) if n % d == 0)
    return n // b, b


@functools.cache
def _factors(n: int, stream: int) -> tuple[Tensor, Tensor]:
    """Two orthogonal matrices, the same for every matrix of this width."""
    generator = torch.Generator().manual_seed(SEED + 2 * n + stream)
    a, b = (_orthogonal(size, generator) for size in _sizes(n))
    return a, b


def _orthogonal(n: int, generator: torch.Generator) -> Tensor:
    """An orthogonal matrix [n, n] drawn alike from all, float16."""
    q, r = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    drawn: Tensor = q * r.diagonal().sign()
    return drawn.half().contiguous()  # as it comes back from a file: products of other strides differ in the last bit


def _inverse(factor: Tensor) -> Tensor:
    found: Tensor = torch.linalg.inv(factor.double())
    return found.float()

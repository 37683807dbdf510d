"""affine - inputs through an invertible Kronecker product, before they are rounded: a basis that can be learned.

In / Out  W = C (L x R): C is what the grid holds; a layer gives it x (L x R)t. Parts "affine_left" L [a, a], "affine_right" R
          [b, b], float16, n = a b.
Idea      L and R need not be orthogonal: they may also give directions that matter more of the grid. C is made with the inverse
          of what is stored, so that nothing is lost but rounding.
Source    FlatQuant (2410.09426), section 3.1.
Figures   16 (a^2 + b^2) bits: 0.008 a weight of 4096 x 4096; n (a + b) products a token, 1 in 32 of those behind it.
Traps     Linears that share an input share L and R. Without a method that learns them they are random rotations.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from lowbit.core.errors import RequestError
from lowbit.sides import Parts, _kronecker

LARGEST = 1024


@dataclass(frozen=True)
class Affine:
    """The only side of this file."""

    parts: tuple[str, ...] = ("affine_left", "affine_right")
    ahead: bool = True

    def bits(self, shape: tuple[int, int]) -> int:
        return 16 * sum(size * size for size in _kronecker.sizes(shape[1]))

    def fits(self, shape: tuple[int, int]) -> str:
        a, b = _kronecker.sizes(shape[1])
        return f"{shape[1]} is {a} x {b}, factors up to {LARGEST} only" if a > LARGEST else ""

    def fit(self, weight: Tensor) -> Parts:
        drawn = _kronecker.factors(weight.shape[1], 0)
        return {name: factor.to(weight.device) for name, factor in zip(self.parts, drawn, strict=True)}

    def into(self, weight: Tensor, parts: Parts) -> Tensor:
        left, right = (_kronecker.inverse(parts[name]) for name in self.parts)
        return _kronecker.turn(weight.float(), left.T, right.T)

    def decode(self, values: Tensor, parts: Parts) -> Tensor:
        left, right = (parts[name].to(values.dtype) for name in self.parts)
        return _kronecker.turn(values, left.T, right.T)

    def moment(self, moment: Tensor, parts: Parts) -> Tensor:
        return self.before(self.before(moment, parts).T.contiguous(), parts)

    def before(self, x: Tensor, parts: Parts) -> Tensor:
        left, right = (parts[name].to(x.dtype) for name in self.parts)
        return _kronecker.turn(x, left, right)

    def within(self, x: Tensor, parts: Parts, inner: Callable[[Tensor], Tensor]) -> Tensor:
        left, right = (_kronecker.inverse(parts[name]).to(x.dtype) for name in self.parts)
        return _kronecker.turn(inner(self.before(x, parts)), left, right)

    def after(self, y: Tensor, x: Tensor, parts: Parts) -> Tensor:
        return y


def side(number: str) -> Affine:
    if number:
        raise RequestError(f"affine{number}: its sizes follow from the matrix. Use affine.")
    return Affine()

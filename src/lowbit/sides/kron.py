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

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from lowbit.core.errors import RequestError
from lowbit.sides import Parts, _kronecker

LARGEST = 1024


@dataclass(frozen=True)
class Kronecker:
    """The only side of this file."""

    parts = ("input_left", "input_right", "output_left", "output_right")
    known = True

    def bits(self, shape: tuple[int, int]) -> int:
        return 16 * sum(size * size for n in shape for size in _kronecker.sizes(n))

    def fits(self, shape: tuple[int, int]) -> str:
        large = [n for n in shape if _kronecker.sizes(n)[0] > LARGEST]
        factors = " x ".join(map(str, _kronecker.sizes(large[0]))) if large else ""
        return f"{large[0]} is {factors}, factors up to {LARGEST} only" if large else ""

    def fit(self, weight: Tensor) -> Parts:
        out, inputs = weight.shape
        drawn = [*_kronecker.factors(inputs, 0), *_kronecker.factors(out, 1)]
        return {name: factor.to(weight.device) for name, factor in zip(self.parts, drawn, strict=True)}

    def into(self, weight: Tensor, parts: Parts) -> Tensor:
        left, right = (_kronecker.inverse(parts[f"output_{side}"]) for side in ("left", "right"))
        plain = _kronecker.turn(weight.float().T.contiguous(), left, right).T.contiguous()
        left, right = (_kronecker.inverse(parts[f"input_{side}"]) for side in ("left", "right"))
        return _kronecker.turn(plain, left.T, right.T)

    def decode(self, values: Tensor, parts: Parts) -> Tensor:
        left, right = (parts[f"input_{side}"].to(values.dtype) for side in ("left", "right"))
        plain = _kronecker.turn(values, left.T, right.T)
        left, right = (parts[f"output_{side}"].to(values.dtype) for side in ("left", "right"))
        return _kronecker.turn(plain.T.contiguous(), left, right).T.contiguous()

    def moment(self, moment: Tensor, parts: Parts) -> Tensor:
        return self.before(self.before(moment, parts).T.contiguous(), parts)

    def before(self, x: Tensor, parts: Parts) -> Tensor:
        return _kronecker.turn(x, parts["input_left"].to(x.dtype), parts["input_right"].to(x.dtype))

    def within(self, x: Tensor, parts: Parts, inner: Callable[[Tensor], Tensor]) -> Tensor:
        left, right = (_kronecker.inverse(parts[f"input_{side}"]).to(x.dtype) for side in ("left", "right"))
        return _kronecker.turn(inner(self.before(x, parts)), left, right)

    def after(self, y: Tensor, x: Tensor, parts: Parts) -> Tensor:
        return _kronecker.turn(y, parts["output_left"].to(y.dtype), parts["output_right"].to(y.dtype))


def side(number: str) -> Kronecker:
    if number:
        raise RequestError(f"kron{number}: its sizes follow from the matrix. Use kron.")
    return Kronecker()

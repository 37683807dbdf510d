"""turn - inputs in the basis of a Hadamard matrix, before they are rounded: outliers of channels are spread over all.

In / Out  W = C Ht: C is what the grid holds; a layer gives it x H. There are no parts: the matrix follows from the width.
Idea      x Wt = (x H) (W H)t. Where no linear stands before an edge (the product of gate and up, attention's output), a basis
          cannot be folded into weights; it is applied while running, with a fast transform. The outputs stay as they are.
Source    QuaRot (2404.00456), section 4.2: "online Hadamard".
Defaults  turn: the whole width where its order can be computed, else the largest block that divides it. turn128: blocks of 128.
Figures   0 bits. n log n operations a token, of n = 14336 (28 x 512) about 1 in 200 of the products behind it.
Traps     Rounded inputs (act) are those behind it, which is what it is for; `had`, made for weights, comes after rounding.
          A massive token stays one: no basis of channels helps against outliers of tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from lowbit.sides import Parts, _hadamard

EXAMPLES = ("turn", "turn128")


@dataclass(frozen=True)
class Turn:
    """size: of a block; 0: as large as can be."""

    size: int

    parts: tuple[str, ...] = ()
    ahead: bool = True

    def block(self, n: int) -> int:
        """The order of the matrix on each `block` of n inputs."""
        return self.size or _hadamard.block(n)

    def bits(self, shape: tuple[int, int]) -> int:
        return 0

    def fits(self, shape: tuple[int, int]) -> str:
        if not _hadamard.factors(self.block(shape[1])):
            return f"no Hadamard matrix of order {self.size} can be computed"
        return f"blocks of {self.size} do not divide {shape[1]}" if shape[1] % self.block(shape[1]) else ""

    def fit(self, weight: Tensor) -> Parts:
        return {}

    def into(self, weight: Tensor, parts: Parts) -> Tensor:
        return _hadamard.apply(weight.float(), self.block(weight.shape[1]))

    def decode(self, values: Tensor, parts: Parts) -> Tensor:
        return _hadamard.apply(values, self.block(values.shape[1]), back=True)

    def moment(self, moment: Tensor, parts: Parts) -> Tensor:
        return self.before(self.before(moment, parts).T.contiguous(), parts)

    def before(self, x: Tensor, parts: Parts) -> Tensor:
        return _hadamard.apply(x, self.block(x.shape[-1]))

    def within(self, x: Tensor, parts: Parts, inner: Callable[[Tensor], Tensor]) -> Tensor:
        return _hadamard.apply(inner(self.before(x, parts)), self.block(x.shape[-1]), back=True)

    def after(self, y: Tensor, x: Tensor, parts: Parts) -> Tensor:
        return y


def side(number: str) -> Turn:
    return Turn(int(number or 0))

"""order - the inputs of the grid in another order, so that those of like reach stand in one group.

In / Out  W = C P; part "order" int16 [in] (the bits of an unsigned place): the grid's column j is the matrix's order[j].
Idea      Groups of consecutive inputs share a scale, of weights and of rounded inputs; sorted by reach, each group has what it
          needs. The layer gathers its inputs anew at every call.
Source    RPTQ (2304.01089).
Figures   16 bits an input.
Traps     Which order is good must come from data: without it the inputs stay where they are. A method (rptq) sorts them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.core.errors import FormatError
from lowbit.sides import Parts

LARGEST = 1 << 16


@dataclass(frozen=True)
class Order:
    """The only side of this file."""

    parts = ("order",)

    def bits(self, shape: tuple[int, int]) -> int:
        return 16 * shape[1]

    def fits(self, shape: tuple[int, int]) -> str:
        return "" if shape[1] <= LARGEST else f"{shape[1]} columns, a place of 16 bits counts {LARGEST}"

    def fit(self, weight: Tensor) -> Parts:
        return self.hold(torch.arange(weight.shape[1], device=weight.device))

    def hold(self, order: Tensor) -> Parts:
        """The part that keeps an order [in]."""
        return {"order": torch.where(order < LARGEST // 2, order, order - LARGEST).to(torch.int16)}

    def places(self, parts: Parts) -> Tensor:
        """The order [in], int64."""
        return parts["order"].long() & (LARGEST - 1)

    def into(self, weight: Tensor, parts: Parts) -> Tensor:
        return weight.float()[:, self.places(parts)]

    def decode(self, values: Tensor, parts: Parts) -> Tensor:
        return values[:, self.places(parts).argsort()]

    def before(self, x: Tensor, parts: Parts) -> Tensor:
        return x[..., self.places(parts)]

    def within(self, x: Tensor, parts: Parts, inner: Callable[[Tensor], Tensor]) -> Tensor:
        return inner(self.before(x, parts))[..., self.places(parts).argsort()]

    def after(self, y: Tensor, x: Tensor, parts: Parts) -> Tensor:
        return y


def side(number: str) -> Order:
    if number:
        raise FormatError(f"order{number}: it has no number. Use order.")
    return Order()

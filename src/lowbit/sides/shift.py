"""shift - inputs less a vector, before they are rounded, and what that does to the outputs added to them.

In / Out  y = (x - z) Ct + c: C is what the grid holds; parts "shift_input" z float16 [in], "shift_output" c = W z float32
          [out].
Idea      A channel that lies around a mean far from 0 wastes half of a grid around 0. W z is made of the float weights, so that
          the mean loses nothing to rounding.
Source    Outlier Suppression+ (2304.09145), section 3.1.
Figures   16 in + 32 out bits a matrix.
Traps     The outputs are no longer linear in x: `decode` gives W, which does not tell c. Without a method z is 0.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.core.errors import RequestError
from lowbit.sides import Parts


@dataclass(frozen=True)
class Shift:
    """The only side of this file. adds: its outputs hold what does not depend on x."""

    parts: tuple[str, ...] = ("shift_input", "shift_output")
    ahead: bool = True
    adds: bool = True

    def bits(self, shape: tuple[int, int]) -> int:
        return 16 * shape[1] + 32 * shape[0]

    def fits(self, shape: tuple[int, int]) -> str:
        return ""

    def fit(self, weight: Tensor) -> Parts:
        out, inputs = weight.shape
        middle = torch.zeros(inputs, dtype=torch.float16, device=weight.device)
        return {"shift_input": middle, "shift_output": torch.zeros(out, device=weight.device)}

    def into(self, weight: Tensor, parts: Parts) -> Tensor:
        return weight.float()

    def decode(self, values: Tensor, parts: Parts) -> Tensor:
        return values

    def moment(self, moment: Tensor, parts: Parts) -> Tensor:
        return moment

    def before(self, x: Tensor, parts: Parts) -> Tensor:
        return x - parts["shift_input"].to(x.dtype)

    def within(self, x: Tensor, parts: Parts, inner: Callable[[Tensor], Tensor]) -> Tensor:
        return inner(self.before(x, parts)) + parts["shift_input"].to(x.dtype)

    def after(self, y: Tensor, x: Tensor, parts: Parts) -> Tensor:
        return y + parts["shift_output"].to(y.dtype)


def side(number: str) -> Shift:
    if number:
        raise RequestError(f"shift{number}: it takes no number. Use shift.")
    return Shift()

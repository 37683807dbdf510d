"""svid - a factor for each input, so that rows need one scale each: W = C diag(b), b from the sizes of the weights.

In / Out  W [out, in] = C diag(b): C is what the grid holds; part "input_vector" b float16 [in].
Idea      |W| is about a rank-1 matrix a bT, its largest singular vectors (found by powers: |W| has no negative entry, so one
          stands out). Then W = sign(W) |W| is about sign(W) * (a bT): with "binary-row-svid" the grid holds signs and a, the
          scale of each row. b has mean square 1; a tuner may train it.
Source    OneBit (2402.11295), section 3.2: sign-value-independent decomposition (SVID).
Figures   16 bits an input: binary-row-svid takes 1.008 bits a weight of 4096 x 4096. |W - sign(W) * a bT| is never above the
          distance to the best rank-1 matrix (proposition 2 of the paper; tests).
Traps     An input whose weights are all 0 gets the least factor, 2^-10.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.core.errors import RequestError
from lowbit.sides import Parts

ROUNDS = 20
LEAST, MOST = 2.0**-10, 2.0**10


@dataclass(frozen=True)
class Svid:
    """The only side of this file."""

    parts = ("input_vector",)
    trained = parts

    def bits(self, shape: tuple[int, int]) -> int:
        return 16 * shape[1]

    def fits(self, shape: tuple[int, int]) -> str:
        return ""

    def fit(self, weight: Tensor) -> Parts:
        size = weight.float().abs()
        size = size / size.amax().clamp_min(1e-30)
        b = torch.ones_like(size[0])
        for _ in range(ROUNDS):
            b = size.T @ (size @ b)
            b = b / b.square().mean().sqrt().clamp_min(1e-30)
        return {"input_vector": b.clamp(LEAST, MOST).half()}

    def into(self, weight: Tensor, parts: Parts) -> Tensor:
        return weight.float() / parts["input_vector"].float()

    def decode(self, values: Tensor, parts: Parts) -> Tensor:
        return values * parts["input_vector"].to(values.dtype)

    def moment(self, moment: Tensor, parts: Parts) -> Tensor:
        factors = parts["input_vector"].to(moment.dtype)
        return moment * factors * factors[:, None]

    def before(self, x: Tensor, parts: Parts) -> Tensor:
        return x * parts["input_vector"].to(x.dtype)

    def within(self, x: Tensor, parts: Parts, inner: Callable[[Tensor], Tensor]) -> Tensor:
        return inner(self.before(x, parts)) / parts["input_vector"].to(x.dtype)

    def after(self, y: Tensor, x: Tensor, parts: Parts) -> Tensor:
        return y


def side(number: str) -> Svid:
    if number:
        raise RequestError(f"svid{number}: its vector follows from the matrix. Use svid.")
    return Svid()

"""rank - a low-rank matrix beside the grid: two thin factors in half precision.

In / Out  W = C + B A; parts "rank_out" B float16 [out, r], "rank_in" A float16 [r, in]. `rank32` has r = 32.
Idea      Without data B A is the best approximation of W itself (its largest singular values), so that the grid gets what is
          left, with smaller outliers. Methods that know the inputs (lqer, qera) fit it to the error of the grid instead.
Source    LQER (2402.02446); the largest singular values first: SVDQuant (2411.05007).
Figures   16 r (in + out) bits: rank32 costs 0.25 bits a weight of 4096 x 4096.
Traps     At equal bits a higher rate of the code wins on errors without structure; worth it where outliers or inputs have rank.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.core.errors import FormatError
from lowbit.sides import Parts

EXAMPLES = ("rank8",)


@dataclass(frozen=True)
class LowRank:
    """rank: of the factors."""

    rank: int

    parts = ("rank_out", "rank_in")
    trained = parts

    def bits(self, shape: tuple[int, int]) -> int:
        return 16 * self.rank * (shape[0] + shape[1])

    def fits(self, shape: tuple[int, int]) -> str:
        return "" if self.rank <= min(shape) else f"a matrix of {shape[0]} x {shape[1]} has no rank {self.rank}"

    def fit(self, weight: Tensor) -> Parts:
        u, s, vh = torch.linalg.svd(weight.float(), full_matrices=False)
        root = s[: self.rank].sqrt()
        return self.hold(u[:, : self.rank] * root, root[:, None] * vh[: self.rank])

    def hold(self, left: Tensor, right: Tensor) -> Parts:
        """The parts that keep left [out, r] and right [r, in]."""
        return {"rank_out": left.to(torch.float16).contiguous(), "rank_in": right.to(torch.float16).contiguous()}

    def into(self, weight: Tensor, parts: Parts) -> Tensor:
        return weight.float() - self._dense(parts)

    def decode(self, values: Tensor, parts: Parts) -> Tensor:
        return values + self._dense(parts)

    def before(self, x: Tensor, parts: Parts) -> Tensor:
        return x

    def after(self, y: Tensor, x: Tensor, parts: Parts) -> Tensor:
        return y + x @ parts["rank_in"].to(x.dtype).t() @ parts["rank_out"].to(x.dtype).t()

    def _dense(self, parts: Parts) -> Tensor:
        return parts["rank_out"].float() @ parts["rank_in"].float()


def side(number: str) -> LowRank:
    if not number.isdigit() or int(number) < 1:
        raise FormatError(f"rank{number}: the number is the rank. Use rank16.")
    return LowRank(int(number))

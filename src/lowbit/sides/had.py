"""had - a basis of random signs and Hadamard matrices on inputs and outputs: weights without outliers, Gaussian to codes.

In / Out  W = diag(v) Ht C H diag(u): C is what the grid holds; parts "input_factors" u [in], "output_factors" v [out], float16.
Idea      In the turned basis every weight is a sum of all, so that no entry and no channel stands out, and codes made for a
          Gaussian source fit. u and v begin as random signs; as real numbers they take up scales and can be trained.
          Outputs are E = (W - Q) x: |Ht E'| = |E'|, so the solver's loss is the same inside and outside.
Source    QuIP# (2402.04396) section 3; blocks: exllamav3.
Defaults  had: the whole width where its order can be computed, else the largest block that divides it. had128: blocks of 128.
Figures   16 (in + out) bits a matrix: 0.008 a weight of 4096 x 4096.
Traps     Signs depend on the width alone: matrices that share their inputs share u, and a layer may turn x once for all.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.sides import Parts, _hadamard

EXAMPLES = ("had", "had128")
SEED = 0x10B


@dataclass(frozen=True)
class Hadamard:
    """size: of a block; 0: as large as can be."""

    size: int

    parts = ("input_factors", "output_factors")
    trained = parts
    known = True

    def _block(self, n: int) -> int:
        return self.size or _hadamard.block(n)

    def bits(self, shape: tuple[int, int]) -> int:
        return 16 * (shape[0] + shape[1])

    def fits(self, shape: tuple[int, int]) -> str:
        odd = [n for n in shape if n % self._block(n)]
        return f"blocks of {self.size} do not divide {odd[0]}" if odd else ""

    def fit(self, weight: Tensor) -> Parts:
        out, inputs = weight.shape
        return {"input_factors": _signs(inputs, 0, weight.device), "output_factors": _signs(out, 1, weight.device)}

    def into(self, weight: Tensor, parts: Parts) -> Tensor:
        plain = weight.float() / parts["output_factors"].float()[:, None] / parts["input_factors"].float()
        return self._turn(self._turn(plain, 1), 0)

    def decode(self, values: Tensor, parts: Parts) -> Tensor:
        plain = self._turn(self._turn(values, 1, back=True), 0, back=True)
        return plain * parts["input_factors"].float() * parts["output_factors"].float()[:, None]

    def moment(self, moment: Tensor, parts: Parts) -> Tensor:
        factors = parts["input_factors"].to(moment.dtype)
        return self._turn(self._turn(moment * factors * factors[:, None], 1), 0)

    def before(self, x: Tensor, parts: Parts) -> Tensor:
        return self._turn(x * parts["input_factors"].to(x.dtype), 1)

    def within(self, x: Tensor, parts: Parts, inner: Callable[[Tensor], Tensor]) -> Tensor:
        return self._turn(inner(self.before(x, parts)), 1, back=True) / parts["input_factors"].to(x.dtype)

    def after(self, y: Tensor, x: Tensor, parts: Parts) -> Tensor:
        return self._turn(y, 1, back=True) * parts["output_factors"].to(y.dtype)

    def _turn(self, x: Tensor, axis: int, back: bool = False) -> Tensor:
        """x [rows, columns] turned along an axis."""
        x = x if axis else x.t()
        turned = _hadamard.apply(x, self._block(x.shape[1]), back)
        return turned if axis else turned.t().contiguous()


def _signs(n: int, stream: int, device: torch.device) -> Tensor:
    """Random signs [n], the same for every matrix of this width."""
    generator = torch.Generator().manual_seed(SEED + 2 * n + stream)
    return (torch.randint(2, (n,), generator=generator) * 2 - 1).to(device, torch.float16)


def side(number: str) -> Hadamard:
    return Hadamard(int(number or 0))

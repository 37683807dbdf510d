"""hqq - zeros that fit all but a few weights well, found without data in a few half-quadratic steps.

In / Out  W [out, in], a format with a zero point -> Quantized. Needs no calibration text.
Idea      Least sum |W - value|^p, p < 1, forgives outliers. Scales stay those of the range; in turn e = shrink(W - value), with
          shrink(d) = sign(d) max(0, |d| - |d|^(p-1) / beta), and zero = mean(code - (W - e) / scale) over a group; beta grows.
          A zero that is stored as an integer is rounded at the end; where the first one then fits better, it stays.
Source    HQQ (mobiusml.github.io/hqq_blog, 2023), optimize_weights_proximal.
Defaults  p 0.7, beta 10, kappa 1.01, 20 iterations (reference code).
Figures   lowbit-tiny, KL in milli-nats on books / docs / wikitext2 (8 windows): int4-g64-floatzero 52 / 67 / 111,
          rtn 58 / 73 / 123, rtn(search=mse) 51 / 61 / 95; int4-g128-asym and int3-g128-asym: equal to rtn.
Traps     A zero stored as an integer keeps nothing of it (the fitted one is less than half a code away): give it a float zero.
          The reference's groups run along the outputs by default (axis 0); here, as in every engine, along the inputs. It needs
          a zero: int4-g64-asym or int4-g64-floatzero.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowbit.core.errors import FormatError
from lowbit.formats import Format, Grid, Quantized
from lowbit.methods import Count, Method, Share
from lowbit.methods._taken import Formats
from lowbit.solvers import grid
from lowbit.statistics import Stats


@dataclass(frozen=True)
class HQQ(Method):
    """p: power of the error. beta: weight of the split, times kappa at each step. iterations: steps at most."""

    format: str = ""
    p: Share = 0.7
    beta: float = 10.0
    kappa: float = 1.01
    iterations: Count = 20

    needs: ClassVar[tuple[str, ...]] = ()
    takes: ClassVar[Formats] = Formats(
        "a zero for each group of a row",
        ("int4-g64-asym", "int4-g64-floatzero"),
        lambda format: bool(format.zero) and format.group[0] == 1,
    )

    def solve(self, weight: Tensor, stats: Stats, format: Format) -> Quantized:
        reason, start = self.refusal(format), format.fit(weight, search=False)
        if reason or start.zero is None:
            raise FormatError(f"hqq({format}): {reason}.")
        x = weight.float().view(weight.shape[0], start.scale.shape[1], -1)
        zero = self._fitted(x, start)
        better = self._loss(x, start, zero) < self._loss(x, start, start.zero)
        unsigned = torch.where(better, zero, start.zero) - format.dtype.minimum
        stored = _stored(unsigned, start.parts["zero"].dtype, format.dtype.codes)
        chosen = Grid(format, {**start.parts, "zero": stored}, start.shape)
        quantized = chosen.quantize(weight)
        quantized.report["error"] = grid.weight_error(weight, quantized)
        return quantized

    def _fitted(self, x: Tensor, start: Grid) -> Tensor:
        """The zero [R, G], in the element's units and as it would be stored."""
        element = start.format.dtype
        scale, zero, beta = start.scale[..., None], start.zero[..., None], self.beta  # type: ignore[index]
        best, least = zero, float("inf")
        for _ in range(self.iterations):
            codes = element.round(x / scale + zero)
            off = x - (codes - zero) * scale
            error = float(off.abs().mean())
            if error >= least:
                break
            best, least = zero, error
            size = off.abs()
            shrunk = off.sign() * (size - size.clamp_min(1e-12).pow(self.p - 1) / beta).clamp_min_(0)
            zero = (codes - (x - shrunk) / scale).mean(-1, keepdim=True)
            beta *= self.kappa
        kept = _stored(best[..., 0] - element.minimum, start.parts["zero"].dtype, element.codes)
        return kept.float() + element.minimum

    def _loss(self, x: Tensor, start: Grid, zero: Tensor) -> Tensor:
        """sum |W - value|^p of each group [R, G]."""
        scale, zero = start.scale[..., None], zero[..., None]
        off = x - (start.format.dtype.round(x / scale + zero) - zero) * scale
        return off.abs().pow(self.p).sum(-1)


def _stored(zero: Tensor, dtype: torch.dtype, codes: int) -> Tensor:
    """A zero in unsigned codes as its format stores it: an integer code, or a float exact in float16 and bfloat16."""
    if not dtype.is_floating_point:
        return zero.round().clamp_(0, codes - 1).to(dtype)
    kept = zero.to(dtype)
    return torch.where(kept.abs() < 2.0**-14, torch.zeros_like(kept), kept)

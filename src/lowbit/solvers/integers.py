"""integers - an integer grid whose rounding lets gradients through to weights, scales and zeros.

In / Out  a solved matrix; scale, zero [R, G] and latent weights [out, in] with gradients -> the weights as they are stored.
Idea      value = (q - zero) * scale, q = clamp(round(w / scale + zero)). Rounding of q, of the stored scale and of the stored
          zero pass gradients straight through; a latent weight beyond the last code gets none, its group's scale does.
          What comes out is bit for bit what the packed matrix decodes to.
          Latent weights start inside the cell of the code that the solver chose: where its feedback moved a weight out of the
          nearest cell, the latent weight is put just inside the chosen one. So the start is the solved matrix itself.
Source    LSQ (1902.08153) for the gradient of the scale.
"""

import torch
from torch import Tensor

from lowbit import sides
from lowbit.formats import Format, Grid, Quantized, shelf
from lowbit.solvers.trained import Trained, through

MARGIN = 0.02
"""Steps by which a latent weight lies inside the cell of its code at the start."""
REACH = (0.5, 1.5)
"""Bounds of the factors of a range."""


def refusal(format: Format) -> str:
    """Why a format has no integer grid with scales to train; "" where it has one."""
    if not format.element.startswith("int") or format.step != (1, 1, 1):
        return f"its values are {format.element}, no integers with a step to learn. Use block_tuning"
    if not hasattr(shelf.get(format.rule), "rescale"):
        return f"its scales ({format.rule}) cannot be set one by one. Use norm_tuning"
    return ""


def grid(start: Quantized, scale: Tensor, zero: Tensor | None) -> Grid:
    """The grid of `start` with other scales and zeros [R, G] (in the element's units), as they can be stored."""
    format = start.format
    parts = dict(shelf.get(format.rule).rescale(format, start.parts, scale.detach()))
    if zero is not None:
        parts["zero"] = _stored_zero(zero.detach() - format.dtype.minimum, parts["zero"].dtype, format.dtype.codes)
    found = Grid(format, parts, start.shape)
    found.scale = through(scale, found.scale)
    if zero is not None and found.zero is not None:
        found.zero = through(zero, found.zero)
    return found


def ranged(start: Quantized, base: Grid, factors: list[Tensor]) -> Grid:
    """The grid whose groups reach `factors` times as far as those of `base`.

    factors: one [R, G]; where there is a zero, one for the upper ends and one for the lower.
    """
    if base.zero is None:
        return grid(start, base.scale * factors[0], None)
    element = base.format.dtype
    high = (element.maximum - base.zero) * base.scale * factors[0]
    low = (element.minimum - base.zero) * base.scale * factors[1]
    scale = (high - low) / (element.maximum - element.minimum)
    return grid(start, scale, element.minimum - low / scale)


def _stored_zero(zero: Tensor, dtype: torch.dtype, codes: int) -> Tensor:
    """A zero in unsigned codes as its format stores it: a code, or a float exact in float16 and bfloat16."""
    if not dtype.is_floating_point:
        return zero.round().clamp_(0, codes - 1).to(dtype)
    kept = zero.to(dtype)
    return torch.where(kept.abs() < 2.0**-14, torch.zeros_like(kept), kept)


def steps(latent: Tensor, found: Grid) -> Tensor:
    """Latent weights [out, in], inside the sides, in steps of the grid and on the scale of its codes."""
    x = latent / found.full_scale
    return x if found.full_zero is None else x + found.full_zero


def weight(x: Tensor, found: Grid) -> Tensor:
    """The matrix [out, in] that `x`, in steps, is rounded to, with gradients to `x` and to the grid."""
    element = found.format.dtype
    codes = through(x.clamp(element.minimum, element.maximum), element.round(x.detach()))
    values = (codes if found.full_zero is None else codes - found.full_zero) * found.full_scale
    for name in found.format.sides:
        values = sides.get(name).decode(values, found.parts)
    return values


def quantized(x: Tensor, found: Grid, start: Quantized) -> Quantized:
    """The codes of `x`, in steps, on a grid: what `weight` gives, to be stored."""
    codes = found.format.dtype.encode(x.detach())
    return Quantized(found.format, codes, found.parts, found.shape, dict(start.report))


def latent(original: Tensor, start: Quantized, margin: float) -> Tensor:
    """Latent weights, inside the sides: the original ones, where that is in the cell of the solved code by `margin` steps."""
    found, inner = start.grid, original.float()
    for name in reversed(start.format.sides):
        inner = sides.get(name).into(inner, start.parts)
    element, room = start.format.dtype, 0.5 - margin
    codes, x = element.decode(start.codes), steps(inner, found)
    low = torch.where(codes <= element.minimum, -torch.inf, codes - room)
    high = torch.where(codes >= element.maximum, torch.inf, codes + room)
    x = torch.minimum(torch.maximum(x, low), high)
    return (x if found.full_zero is None else x - found.full_zero) * found.full_scale


class Rounding:
    """One matrix: its latent weights, offsets of them before rounding, at most half a step, and factors of its ranges."""

    def __init__(self, original: Tensor, start: Quantized, rate: float) -> None:
        self.start = start
        self._solved = start.grid
        self._latent = latent(original, start, MARGIN)
        ends = 1 if self._solved.zero is None else 2
        self.offset = Trained(torch.zeros_like(self._latent), rate, -0.5, 0.5)
        self.factors = [Trained(torch.ones_like(self._solved.scale), rate, *REACH) for _ in range(ends)]
        self.trained = [self.offset, *self.factors]

    def grid(self) -> Grid:
        """The grid with the ranges as they are now."""
        return ranged(self.start, self._solved, [t.value for t in self.factors])

    def _steps(self, found: Grid) -> Tensor:
        return steps(self._latent, found) + self.offset.value

    def value(self) -> Tensor:
        found = self.grid()
        return weight(self._steps(found), found)

    def quantized(self) -> Quantized:
        """The matrix as it is stored."""
        found = self.grid()
        return quantized(self._steps(found), found, self.start)

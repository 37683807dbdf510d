"""asymmetric - integers with an integer zero point.

In / Out  W [out, in] -> parts {"scale" [R, G], "zero" [R, G] uint8 in 0 .. 2**b-1}; value = (u - zero) * scale, u the code.
Idea      scale = (hi - lo) / (2**b - 1), zero = round(-lo / scale), lo = min(x, 0), hi = max(x, 0): zero itself is a code.
          search: shares of that scale, at 4 bits and below with the zero one up and down too, least weighted error,
          least-squares refits (_search.py).
Source    Jacob et al. 2018 (1712.05877); search over neighbouring zeros: GPTQModel.
Defaults  search: 20 shares from 1.08 to 0.32, zeros -1, 0, +1, 2 refits.
Figures   Mean squared error on N(0,1), searched: int4-g128 0.0090, int4-g32 0.0059, int3-g128 0.0344, int2-g128 0.1316.
Traps     The zero is an unsigned code in the file, in the element's own units less 2**(b-1): `expand` gives the latter.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from lowbit.formats import Format, Parts
from lowbit.formats import _search as searching
from lowbit.formats._scales import load, store

EXAMPLES = ("int4-g128-asym", "int3-g64-asym", "int2-g32-asym", "int8-row-asym", "int4-b64x64-asym")


def fit(format: Format, weight: Tensor, importance: Tensor | None, search: bool) -> Parts:
    """Choose the scales and zeros of `weight`; see lowbit.formats."""
    x = searching.grouped(format, weight)
    steps = format.dtype.codes - 1
    low, high = x.amin(-1).clamp_max(0), x.amax(-1).clamp_min(0)
    scale = torch.where(high > low, (high - low) / steps, 1.0)
    zero = _zero(low, searching.rounded(scale, format.scale), steps)
    if search:
        h = searching.weights_of(format, importance, weight.shape[0])
        found = [
            searching.search(part, h_part, _candidates(scale[rows], zero[rows], steps), 0.0, float(steps), format.scale)
            for rows, part, h_part in searching.pieces(x, h)
        ]
        filled = high > low
        scale = torch.where(filled, torch.cat([s for s, _ in found]), scale)
        zero = torch.where(filled, torch.cat([z for _, z in found if z is not None]), zero)
    return {"scale": store(scale, format.scale), "zero": zero.to(torch.uint8)}


def rescale(format: Format, parts: Parts, scale: Tensor) -> Parts:
    """The parts with other scales [R, G], as near as they can be stored."""
    return {**parts, "scale": store(scale, format.scale)}


def expand(format: Format, parts: Parts) -> tuple[Tensor, Tensor | None]:
    """The float32 scale and zero [R, G], the zero in the element's units."""
    return load(parts["scale"], format.scale), parts["zero"].float() + format.dtype.minimum


def _zero(low: Tensor, scale: Tensor, steps: int) -> Tensor:
    """The code of the value zero."""
    return (-low / scale).round_().clamp_(0, steps)


def _candidates(scale: Tensor, zero: Tensor, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Shares of the scale, each with the zero and, at 4 bits and below, its neighbours."""
    shifts = (0, -1, 1) if steps < 16 else (0,)
    for factor in searching.FACTORS:
        for shift in shifts:
            yield scale * factor, (zero + shift).clamp_(0, steps)

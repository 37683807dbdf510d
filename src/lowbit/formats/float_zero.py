"""float_zero - integers with a zero point that is a 16-bit float.

In / Out  W [out, in] -> parts {"scale" [R, G], "zero" [R, G] bfloat16, in unsigned codes}; value = (u - zero) * scale.
Idea      Plain: scale = (hi - lo) / (2**b - 1), zero = -lo / scale, lo = min(x, 0), hi = max(x, 0). search: shares of the
          range; for the codes that each gives, scale and offset by weighted least squares (two unknowns, closed form); the
          best after rounding to what is stored, refitted twice.
Source    HQQ's grid; GGUF's `make_qkx2_quants` for the two-unknown refit.
Defaults  search: 12 shares from 1.04 to 0.60.
Figures   Mean squared error on N(0,1), searched, groups of 128: int4 0.0086, int3 0.0328, int2 0.114.
Traps     The stored zero keeps 8 significant bits, exact in float16 and bfloat16, and may be 0 or lie outside 0 .. 2**b - 1.
"""

import torch
from torch import Tensor

from lowbit.dtypes import Element
from lowbit.formats import Format, Parts
from lowbit.formats import _search as searching
from lowbit.formats._scales import load, store

EXAMPLES = ("int4-g64-floatzero", "int3-g128-floatzero", "int2-g32-floatzero")
FACTORS = tuple(1.04 - 0.04 * i for i in range(12))
REFITS = 2


def fit(format: Format, weight: Tensor, importance: Tensor | None, search: bool) -> Parts:
    """Choose the scales and zeros of `weight`; see lowbit.formats."""
    x = searching.grouped(format, weight)
    low, high = x.amin(-1).clamp_max(0), x.amax(-1).clamp_min(0)
    filled = high > low
    scale = searching.rounded(torch.where(filled, (high - low) / (format.dtype.codes - 1), 1.0), format.scale)
    zero = _stored_zero(-low / scale)
    if search:
        h = searching.weights_of(format, importance, weight.shape[0])
        found = [_search(part, h_part, scale[rows], zero[rows], format) for rows, part, h_part in searching.pieces(x, h)]
        scale = torch.where(filled, torch.cat([s for s, _ in found]), scale)
        zero = torch.where(filled, torch.cat([z for _, z in found]), zero)
    return {"scale": store(scale, format.scale), "zero": zero.to(torch.bfloat16)}


def rescale(format: Format, parts: Parts, scale: Tensor) -> Parts:
    """The parts with other scales [R, G], as near as they can be stored."""
    return {**parts, "scale": store(scale, format.scale)}


def expand(format: Format, parts: Parts) -> tuple[Tensor, Tensor | None]:
    """The float32 scale and zero [R, G], the zero in the element's units."""
    return load(parts["scale"], format.scale), parts["zero"].float() + format.dtype.minimum


def _stored_zero(zero: Tensor) -> Tensor:
    """The zero as it is stored, float32: 8 significant bits; below 2^-14, where float16 loses them, 0."""
    kept = zero.clamp(-65280, 65280).to(torch.bfloat16).float()
    return torch.where(kept.abs() < 2.0**-14, 0.0, kept)


TRAINED = {"zero": lambda zero: _stored_zero(zero).to(torch.bfloat16)}


def _search(x: Tensor, h: Tensor | None, scale: Tensor, zero: Tensor, format: Format) -> tuple[Tensor, Tensor]:
    """The best stored scale and zero [r, G] of shares of the range about its middle."""
    middle = (format.dtype.codes - 1) / 2
    best_scale, best_zero, loss = scale, zero, _loss(x, h, scale, zero, format.dtype)
    starts = [(scale * f, (zero - middle) / f + middle) for f in FACTORS]
    for step in range(len(starts) + REFITS):
        start = starts[step] if step < len(starts) else (best_scale, best_zero)
        tried_scale, tried_zero = _least_squares(x, h, *start, format)
        error = _loss(x, h, tried_scale, tried_zero, format.dtype)
        better = error < loss
        best_scale = torch.where(better, tried_scale, best_scale)
        best_zero = torch.where(better, tried_zero, best_zero)
        loss = torch.minimum(error, loss)
    return best_scale, best_zero


def _codes(x: Tensor, scale: Tensor, zero: Tensor, element: Element) -> Tensor:
    return torch.addcdiv(zero[..., None], x, scale[..., None]).round_().clamp_(0, element.codes - 1)


def _loss(x: Tensor, h: Tensor | None, scale: Tensor, zero: Tensor, element: Element) -> Tensor:
    rest = (_codes(x, scale, zero, element) - zero[..., None]).mul_(scale[..., None]).sub_(x).square_()
    return (rest if h is None else rest.mul_(h)).sum(-1)


def _least_squares(x: Tensor, h: Tensor | None, scale: Tensor, zero: Tensor, format: Format) -> tuple[Tensor, Tensor]:
    """The stored scale and zero of the line scale * u + offset nearest to x, u the codes at (scale, zero)."""
    u = _codes(x, scale, zero, format.dtype)
    weight = torch.ones_like(x[:1, :1]) if h is None else h
    total = weight.sum(-1) if h is not None else torch.full_like(scale[:1, :1], x.shape[-1])
    mean_u, mean_x = (weight * u).sum(-1) / total, (weight * x).sum(-1) / total
    u_off = u - mean_u[..., None]
    spread, shared = (weight * u_off.square()).sum(-1), (weight * u_off * x).sum(-1)
    wanted = torch.where((spread > 0) & (shared > 0), shared / spread, scale)
    stored = searching.rounded(wanted, format.scale)
    return stored, _stored_zero(mean_u - mean_x / stored)

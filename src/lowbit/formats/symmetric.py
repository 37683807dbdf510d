"""symmetric - integers without a zero point, on the signed-max grid.

In / Out  W [out, in] -> parts {"scale" [R, G]}; value = q * scale, q in -2**(b-1) .. 2**(b-1)-1. Scales may be negative.
Idea      Two's complement has one code more below zero than above. The scale takes the sign that puts the entry of largest
          magnitude, x, on that end: scale = -x / 2**(b-1), so x is exact (up to the scale's rounding) and nothing is clipped.
          search: shares of that scale with either sign, least weighted error, least-squares refits (_search.py).
Source    GGUF Q4_0; AutoRound's symmetric grid.
Defaults  search: 20 shares from 1.08 to 0.32, both signs, 2 refits.
Figures   Mean squared error on N(0,1), searched: int4-g128 0.0093, int4-g32 0.0066, int3-g128 0.0344, int2-g128 0.1316;
          by the plain rule int4-g128 0.0107 (the usual grid, scale = 2 max|w| / (2**b - 1), gives 0.0123).
Traps     The usual grid (GPTQ, llm-compressor) puts +max|w| half a step beyond the last code, where it always clips: the
          plain rule here is better than other tools' "RTN sym", not equal to it. Scale formats without a sign (e8m0)
          get scale = max|w| / (2**(b-1) - 1) and positive candidates only.
"""

import torch
from torch import Tensor

from lowbit.formats import Format, Parts
from lowbit.formats import _search as searching
from lowbit.formats._scales import load, store

EXAMPLES = ("int4-g128", "int8-row", "int2-g32", "int3-tensor", "int8-b128x128", "int4-g32-e8m0")
UNSIGNED = {"e8m0"}


def fit(format: Format, weight: Tensor, importance: Tensor | None, search: bool) -> Parts:
    """Choose the scales of `weight`; see lowbit.formats."""
    x = searching.grouped(format, weight)
    scale = _plain(format, x)
    if search:
        h = searching.weights_of(format, importance, weight.shape[0])
        scale = torch.cat([_searched(format, part, h_part, scale[rows]) for rows, part, h_part in searching.pieces(x, h)])
    scale = torch.where(x.abs().amax(-1) > 0, scale, 1.0)
    return {"scale": store(scale, format.scale)}


def rescale(format: Format, parts: Parts, scale: Tensor) -> Parts:
    """The parts with other scales [R, G], as near as they can be stored."""
    return {**parts, "scale": store(scale, format.scale)}


def expand(format: Format, parts: Parts) -> tuple[Tensor, Tensor | None]:
    """The float32 scale [R, G]; there is no zero."""
    return load(parts["scale"], format.scale), None


def _plain(format: Format, x: Tensor) -> Tensor:
    """The scale [R, G] at which nothing clips."""
    if format.scale in UNSIGNED:
        return x.abs().amax(-1) / format.dtype.maximum
    largest = x.gather(-1, x.abs().argmax(-1, keepdim=True))[..., 0]
    return largest / format.dtype.minimum


def _searched(format: Format, x: Tensor, h: Tensor | None, scale: Tensor) -> Tensor:
    signs = (1.0,) if format.scale in UNSIGNED else (1.0, -1.0)
    starts = ((scale * (sign * factor), None) for factor in searching.FACTORS for sign in signs)
    return searching.search(x, h, starts, format.dtype.minimum, format.dtype.maximum, format.scale)[0]

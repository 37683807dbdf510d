"""table - elements that are no integers (tables of values, small floats), one scale a group, no zero.

In / Out  W [out, in] -> parts {"scale" [R, G]}; value = element * scale.
Idea      Plain: scale = max|w| / greatest element. search: shares of that scale, each with the least-squares scale of its
          values, the best by weighted squared error, two refits (_table_search.py). An 8-bit float's relative error does not
          depend on its scale within its range, so that 8-bit elements keep the plain scale: a search gains 1 % in rows, 6 %
          in groups of 128.
Source    QLoRA (2305.14314) for the plain rule.
Defaults  search: 13 shares from 1.08 to 0.60.
Figures   Mean squared error on N(0,1), groups of 64: nf4 0.00846 plain, 0.0073 searched; groups of 128: 0.00914, 0.0081.
"""

import torch
from torch import Tensor

from lowbit.formats import Format, Parts
from lowbit.formats import _search as searching
from lowbit.formats import _table_search as tables
from lowbit.formats._scales import load, store

EXAMPLES = (
    "nf4-g64", "nf4-g128-fp32", "sf4-g64", "e2m1-g32", "e2m1-g32-e8m0", "e2m3-g32", "e3m2-g32-fp16", "e5m2-row", "e4m3-tensor",
)  # fmt: skip
FACTORS = tuple(1.08 - 0.04 * i for i in range(13))


def fit(format: Format, weight: Tensor, importance: Tensor | None, search: bool) -> Parts:
    """Choose the scales of `weight`; see lowbit.formats."""
    x = searching.grouped(format, weight)
    scale = tables.absmax(x, min(format.dtype.maximum, -format.dtype.minimum))
    if search and format.dtype.bits < 8:
        h = searching.weights_of(format, importance, weight.shape[0])
        found = [
            tables.search(part, h_part, (scale[rows] * f for f in FACTORS), format.dtype, format.scale)
            for rows, part, h_part in searching.pieces(x, h)
        ]
        scale = torch.where(x.abs().amax(-1) > 0, torch.cat(found), scale)
    return {"scale": store(scale, format.scale)}


def rescale(format: Format, parts: Parts, scale: Tensor) -> Parts:
    """The parts with other scales [R, G], as near as they can be stored."""
    return {**parts, "scale": store(scale, format.scale)}


def expand(format: Format, parts: Parts) -> tuple[Tensor, Tensor | None]:
    """The float32 scale [R, G]; there is no zero."""
    return load(parts["scale"], format.scale), None

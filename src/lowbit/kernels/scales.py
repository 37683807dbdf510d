"""scales - a format fitted to a matrix, by the fastest search of scales that there is for the device.

In / Out  format, W [out, in], importance [in] -> the grid, as `Format.fit` gives it.
Idea      The format's own search is the law; integers in groups of one row have a kernel on NVIDIA GPUs (triton/_scales.py).
"""

import torch
from torch import Tensor

from lowbit.formats import Format, Grid, _scales, _search
from lowbit.kernels import triton

GROUPS = (16, 32, 64, 128, 256)
RULES = ("symmetric", "asymmetric")


def fit(format: Format, weight: Tensor, importance: Tensor) -> Grid:
    """The grid of a format without sides whose scales are searched with weights importance [in]."""
    if triton.panel_refusal(weight) or refusal(format):
        return format.fit(weight, importance)
    return searched(format, weight, importance)


def refusal(format: Format) -> str:
    """Why the kernel cannot search the scales of a format, or ""."""
    if format.rule not in RULES or format.sides or format.group[0] != 1 or format.group[1] not in GROUPS:
        return f"{format} is no integer in groups of {', '.join(map(str, GROUPS))} inputs of a row"
    return "" if format.scale in _scales.TYPES and format.scale != "e4m3" else f"scales in {format.scale}"


def searched(format: Format, weight: Tensor, importance: Tensor) -> Grid:
    """As `fit`, by the kernel."""
    from lowbit.kernels.triton import _scales as kernel

    plain = format.fit(weight, search=False)  # refuses what cannot be fitted
    x = _search.grouped(format, weight.float()).contiguous()
    h = _search.weights_of(format, importance, weight.shape[0])
    h = torch.ones_like(x[:1]) if h is None else h
    asymmetric, codes = format.rule == "asymmetric", format.dtype.codes
    ends = (0.0, float(codes - 1)) if asymmetric else (format.dtype.minimum, format.dtype.maximum)
    ways = (3 if codes <= 16 else 1) if asymmetric else 2
    stored = _scales.TYPES[format.scale]
    scale, zero = kernel.search(x, h[0].contiguous(), ends, ways, asymmetric, _search.FACTORS, _search.REFITS, stored)
    used = x.amax(-1).clamp_min(0) > x.amin(-1).clamp_max(0)
    parts = {"scale": torch.where(used, scale.to(stored[0]), plain.parts["scale"])}
    if asymmetric:
        parts["zero"] = torch.where(used, zero.to(torch.uint8), plain.parts["zero"])
    return Grid(format, parts, plain.shape)


def refit(grid: Grid, units: Tensor, moment: Tensor, errors: Tensor) -> Tensor | None:
    """The best scales [out, G] for codes that stay, as lowbit.solvers.descent finds them; None where no kernel does.

    units, errors [in, out]: codes less zeros, and W - Q, which is changed.
    """
    if triton.panel_refusal(units) or refusal(grid.format):
        return None
    from lowbit.kernels.triton import _scales as kernel

    scale = grid.scale.T.contiguous()
    kernel.refit(units, moment.contiguous(), errors, scale, _scales.TYPES[grid.format.scale])
    return scale.T.contiguous()

"""kernels/triton - GPU kernels in Triton. Files that import triton start with an underscore and are imported on first use.

Beside the linear layers: `panel`, the loop over the columns of a solver's panel as one kernel.
"""

import importlib.util

import torch
from torch import Tensor

PANEL = 128
"""Columns of a panel at most."""
ROWS = 4
"""Rows that one program rounds."""


def panel_refusal(weight: Tensor) -> str:
    """Why `panel` cannot run on `weight`, or ""."""
    if weight.device.type != "cuda" or torch.version.hip is not None:
        return f"device {weight.device.type} is not an NVIDIA GPU"
    return "" if importlib.util.find_spec("triton") else "triton is not installed"


def panel(
    base: Tensor, moved: Tensor, pull: Tensor, group: Tensor, scale: Tensor, zero: Tensor | None, low: float, high: float,
    levels: Tensor | None = None, up: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Codes and values [columns, out] of a panel of at most 128 columns.

    base, moved float32 [columns, out]: what errors are counted from, and what is to be rounded before the panel's own errors
    are known. pull float32 [columns, columns]: row k is what the error of column k adds to the others. The last column is
    rounded first and moves those before it; `up`: the first is first and moves those after it. group int32 [columns]: row of
    `scale` and `zero` [G, out] for each column. low, high: ends of an integer element, whose codes are its values; levels [K]
    or [K, out]: the sorted values of another element, whose codes are places among them (ties go down).
    """
    from lowbit.kernels.triton import _panel

    columns, out = base.shape
    codes, values = torch.empty_like(base), torch.empty_like(base)
    options = {"num_warps": 2} if base.is_cuda else {}
    count = 0 if levels is None else len(levels)
    _panel.rounded[(-(-out // ROWS),)](
        base.contiguous(), moved.contiguous(), pull.contiguous(), group, scale, scale if zero is None else zero,
        scale if levels is None else levels, codes, values, out, N=columns, P=1 << (columns - 1).bit_length(), BR=ROWS, UP=up,
        LOW=float(low), HIGH=float(high), ZERO=zero is not None, LEVELS=count, DEPTH=max(count - 1, 0).bit_length(),
        BY_ROW=levels is not None and levels.dim() == 2, **options,
    )  # fmt: skip
    return codes, values

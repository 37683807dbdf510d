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
    weight: Tensor, moved: Tensor, lower: Tensor, group: Tensor, scale: Tensor, zero: Tensor | None, low: float, high: float,
    levels: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Codes (element values) and values [columns, out] of a panel of at most 128 columns, the last of them rounded first.

    weight, moved float32 [columns, out]: the matrix, and the matrix with the feedback of all columns beyond the panel.
    lower float32 [columns, columns]: the factor's diagonal block. group int32 [columns]: row of `scale` and `zero` [G, out] for
    each column. low, high: ends of an integer element; levels: the sorted values of another element (ties go down).
    """
    from lowbit.kernels.triton import _panel

    columns, out = weight.shape
    codes, values = torch.empty_like(weight), torch.empty_like(weight)
    options = {"num_warps": 2} if weight.is_cuda else {}
    _panel.rounded[(-(-out // ROWS),)](
        weight.contiguous(), moved.contiguous(), lower.contiguous(), group, scale, scale if zero is None else zero,
        scale if levels is None else levels, codes, values, out, N=columns, P=1 << (columns - 1).bit_length(), BR=ROWS,
        LOW=float(low), HIGH=float(high), ZERO=zero is not None, LEVELS=0 if levels is None else len(levels), **options,
    )  # fmt: skip
    return codes, values

"""step - what stands around the linears when a decoder writes one token; picks the kernels that do it by device.

A file of kernels has `norm`, `gate`, `product`, `enter`, `Attention` and `Taking`; kernels/triton/_step.py says what they are.
Where calls are written down once and made again (kernels/cpu/_replay.py), it has `recorded` too.
"""

import importlib.util
from typing import Any

import torch

from lowbit.kernels.cpu import _step as on_cpu


def find(device: torch.device) -> Any:
    """The file for a device for which there is no refusal."""
    if device.type == "cpu":
        return on_cpu
    from lowbit.kernels.triton import _step

    return _step


def refusal(device: torch.device, dtype: torch.dtype, width: int) -> str:
    """Why there is none for a model of this type with heads of so many channels, or ""."""
    if device.type == "cpu":
        return on_cpu.refusal(device, dtype, width)
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return "" if width & (width - 1) == 0 and width >= 16 else f"its heads are {width} wide"

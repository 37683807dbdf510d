"""_matrices - a packed matrix to time: normal weights rounded to a format; random codes where finding them takes minutes."""

import torch
from torch import Tensor

from lowbit import formats
from lowbit.formats import Quantized


def quantized(text: str, weight: Tensor) -> Quantized:
    """W [out, in] in a format. Codes of several weights are random, and so are their scales."""
    format, shape = formats.parse(text), (weight.shape[0], weight.shape[1])
    if format.step == (1, 1, 1):
        return format.fit(weight, None, False).quantize(weight)
    codes = torch.randint(0, format.dtype.codes, format.codes_shape(shape), dtype=torch.uint8, device=weight.device)
    scale = torch.rand(format.groups(shape), device=weight.device) + 0.1
    return Quantized(format, codes, {"scale": scale}, shape)

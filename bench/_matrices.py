"""_matrices - a packed matrix to time: normal weights rounded to a format; random codes where finding them takes minutes."""

import torch
from torch import Tensor

from lowbit import formats
from lowbit.formats import Quantized

SAMPLE = 256
"""Rows."""


def quantized(text: str, weight: Tensor) -> Quantized:
    """W [out, in] in a format. Codes of several weights are random, their scales and books those of the first rows."""
    format, shape = formats.parse(text), (weight.shape[0], weight.shape[1])
    if format.step == (1, 1, 1):
        return format.fit(weight, None, False).quantize(weight)
    codes = torch.randint(0, format.dtype.codes, format.codes_shape(shape), dtype=torch.uint8, device=weight.device)
    some = format.fit(weight[:SAMPLE], None, False).parts
    each = {
        name: part.repeat(-(-len(weight) // SAMPLE), 1)[: len(weight)] for name, part in some.items() if len(part) == SAMPLE
    }
    return Quantized(format, codes, some | each, shape)

"""two_level - scales in e4m3 under one fp32 scale for the matrix, for any element and zero.

In / Out  W [out, in] -> the parts of the element's usual rule, its scales float8_e4m3fn, and "global_scale" float32 [1],
          a divisor as in nvfp4; scale = stored / global_scale.
Idea      e4m3 reaches from 2^-9 to 448 only: the matrix is multiplied by global_scale, so that its largest plain scale is 256,
          and handed to the usual rule (symmetric, asymmetric, float_zero, table). 256 leaves the rule's search room up to 448.
Source    nvfp4's second level.
Figures   int4-g32-e4m3: 4.25 bits; mean squared error on N(0,1) 0.0070 (int4-g32 with 16-bit scales, 4.5 bits: 0.0066).
"""

from types import ModuleType

import torch
from torch import Tensor

from lowbit.formats import Format, Parts, one_level, shelf
from lowbit.formats import _search as searching

EXAMPLES = ("int4-g32-e4m3", "int3-g32-asym-e4m3", "nf4-g32-e4m3")


def fit(format: Format, weight: Tensor, importance: Tensor | None, search: bool) -> Parts:
    """Choose the scales of `weight`; see lowbit.formats."""
    x = searching.grouped(format, weight)
    span = (x.amax(-1).clamp_min(0) - x.amin(-1).clamp_max(0)) if format.zero else x.abs().amax(-1)
    steps = format.dtype.codes - 1 if format.zero else max(-format.dtype.minimum, format.dtype.maximum)
    largest = float(span.amax()) / steps
    factor = torch.tensor([256.0 / largest if largest else 1.0], device=weight.device).clamp(2.0**-126, 2.0**126)
    return {**_rule(format).fit(format, weight * factor, importance, search), "global_scale": factor}


def rescale(format: Format, parts: Parts, scale: Tensor) -> Parts:
    """The parts with other scales [R, G], as near as they can be stored under the same global_scale."""
    kept: Parts = _rule(format).rescale(format, parts, scale * parts["global_scale"])
    return kept


def expand(format: Format, parts: Parts) -> tuple[Tensor, Tensor | None]:
    """The float32 scale and zero [R, G]."""
    scale, zero = _rule(format).expand(format, parts)
    return scale / parts["global_scale"], zero


def _rule(format: Format) -> ModuleType:
    """The rule that fits the scales below global_scale."""
    return shelf.get(one_level(format.element, format.zero))

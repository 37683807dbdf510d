"""_scales - how a scale is stored: float32 <-> the number type of a format's scale word.

In / Out  scale float32, any shape -> stored tensor of the same shape -> float32 that means exactly what is stored.
Idea      A scale is never 0, NaN or infinite: its magnitude is held within the range below, its sign is kept.
          half = 8 significant bits within 2^-14 .. 65280: exact in float16 and in bfloat16: a reader may cast it to either.
          e8m0 = the power of two that is nearest by ratio, stored as its exponent + 127 in uint8; it has no sign.
Traps     e4m3 reaches from 2^-9 to 448 only and keeps 3 bits of fraction: without a tensor-wide factor most scales of weights
          fall out of it. The rules `two_level` and `nvfp4` add that factor as the part "global_scale".
"""

import math

import torch
from torch import Tensor

TYPES = {
    "fp32": (torch.float32, 2.0**-126, torch.finfo(torch.float32).max),
    "fp16": (torch.float16, 2.0**-24, 65504.0),
    "bf16": (torch.bfloat16, 2.0**-126, torch.finfo(torch.bfloat16).max),
    "half": (torch.bfloat16, 2.0**-14, 65280.0),
    "e4m3": (torch.float8_e4m3fn, 2.0**-9, 448.0),
}


def store(scale: Tensor, kind: str) -> Tensor:
    """What is stored for each scale (nearest, ties to even); kind is a scale word of a format. Takes no NaN."""
    if kind == "e8m0":
        fraction, exponent = torch.frexp(scale.float().clamp(2.0**-127, torch.finfo(torch.float32).max))
        exponent = exponent - (fraction < math.sqrt(0.5)).to(exponent.dtype)
        return (exponent + 127).clamp_(0, 254).to(torch.uint8)
    dtype, least, greatest = TYPES[kind]
    return torch.copysign(scale.float().abs().clamp(least, greatest), scale.float()).to(dtype)


def load(stored: Tensor, kind: str) -> Tensor:
    """The float32 scales that `stored` means."""
    if kind == "e8m0":
        bits = stored.to(torch.int32) << 23
        return torch.where(bits > 0, bits, 1 << 22).view(torch.float32)
    return stored.float()

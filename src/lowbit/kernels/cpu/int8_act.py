"""int8_act - int8 weights with one scale a row times int8 inputs with one scale a token, summed as integers.

In / Out  codes of x int8 [tokens, in], scales [tokens, 1]; W: codes int8 [out, in], scales [out, 1] -> y float32
          [tokens, out].
Idea      y = s_x s_w (qx . qw): both scales come out of an exact int32 sum, which torch hands to oneDNN (VNNI or AMX).
Figures   4096x4096, one thread of an EPYC with VNNI but without AMX, whole layer, against nn.Linear in float32 and in bfloat16:
          128 tokens 6.1 and 1.3 times as fast, 512 tokens 7.5 and 1.5, one token 3.2 and 2.3; 16 tokens 3.0 and 0.84.
Traps     Dispatch never picks it: only a layer whose inputs are quantized asks for it, by name (lowbit.kernels.activation).
          An int32 sum holds 131071 products of full range.
"""

import torch
from torch import Tensor

from lowbit.formats import Format, Parts
from lowbit.kernels import packing

RANK = 0
LONGEST = 131071


def supports(format: Format, shape: tuple[int, int], device: torch.device, dtype: torch.dtype, tokens: int) -> str:
    return "for layers whose inputs are quantized; they ask for it by name"


def refuses(format: Format, shape: tuple[int, int], device: torch.device) -> str:
    """Why it cannot run a matrix of this format; "" where it can."""
    if device.type != "cpu":
        return f"device {device.type}; CPUs only"
    if format.element != "int8" or format.zero or format.sides:
        return "integers of 8 bits without zero points and sides only"
    if format.group[0] != 1 or format.group[1] not in {0, shape[1]} or format.scale == "e8m0":
        return "one scale a row only"
    return "" if shape[1] <= LONGEST else f"{shape[1]} inputs; {LONGEST} fit into 32 bits"


def prepare(format: Format, packed: Tensor, parts: Parts, shape: tuple[int, int]) -> dict[str, Tensor]:
    codes = packing.codes(format, packed, shape)
    return {"codes": (codes ^ 128).view(torch.int8), "scale": parts["scale"]}


def restore(prepared: dict[str, Tensor], format: Format, shape: tuple[int, int]) -> tuple[Tensor, Parts]:
    return packing.pack_codes(format, prepared["codes"].view(torch.uint8) ^ 128), {"scale": prepared["scale"]}


def product(codes: Tensor, scale: Tensor, weight: Tensor, weight_scale: Tensor) -> Tensor:
    """codes int8 [tokens, in], scale [tokens, 1], prepared weight and scale -> y float32 [tokens, out]."""
    return torch._int_mm(codes, weight.t()).float().mul_(scale).mul_(weight_scale.float().view(1, -1))

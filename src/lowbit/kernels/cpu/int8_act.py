"""int8_act - int8 weights with one scale a row times int8 inputs with one scale a token or for all, summed as integers.

In / Out  x [tokens, in], found or stored scales; W: codes int8 [out, in], scales [out, 1] -> y [tokens, out].
Idea      y = s_x s_w (qx . qw): both scales come out of an exact int32 sum, which torch hands to oneDNN (VNNI or AMX).
Figures   4096x4096, one thread of an EPYC with VNNI but without AMX, whole layer, against nn.Linear in float32 and in bfloat16:
          128 tokens 6.1 and 1.3 times as fast, 512 tokens 7.5 and 1.5, one token 3.2 and 2.3; 16 tokens 3.0 and 0.84.
Traps     An int32 sum holds 131071 products of full range.
"""

import torch
from torch import Tensor

from lowbit.formats import Format, Parts
from lowbit.kernels import activation as acting
from lowbit.kernels import packing
from lowbit.kernels.activation import Activation

RANK = 0
LONGEST = 131071


def supports(format: Format, shape: tuple[int, int], device: torch.device, dtype: torch.dtype, tokens: int) -> str:
    return "for layers whose inputs are rounded"


def takes(activation: Activation, format: Format, shape: tuple[int, int], device: torch.device) -> str:
    if device.type != "cpu":
        return f"device {device.type}; CPUs only"
    if activation.format.element != "int8" or activation.format.group[1]:
        return f"inputs in {activation}; int8 with one scale a token or for all only"
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


def columns(prepared: dict[str, Tensor], format: Format, index: Tensor) -> Tensor:
    """The columns of W at `index`, float32 [out, n]."""
    return prepared["codes"][:, index].float() * prepared["scale"].float()


def rounded(x: Tensor, prepared: dict[str, Tensor], format: Format, shape: tuple[int, int], activation: Activation) -> Tensor:
    codes, scale = acting.quantize(x, activation, prepared.get(acting.STORED))
    y = torch._int_mm(codes, prepared["codes"].t()).float()
    return y.mul_(scale).mul_(prepared["scale"].float().view(1, -1)).to(x.dtype)

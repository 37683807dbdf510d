"""integers_act - whole-number weights of 1 to 8 bits times whole-number inputs of up to 8, in C++ on x86: bytes times bytes.

In / Out  x [tokens, in], found or stored scales of a token or of all of x; W as integers.py holds it -> y [tokens, out].
Idea      The kernel of integers.py takes 16 or 24 bits of x where x is a float; codes of x are one byte, so that one product
          of two or three is left. Sums of a group are exact; its scale, zero and the token's scale follow them.
Figures   bench/w8a8_cpu.py, the whole int8-row layer with int8-token inputs, one thread of an EPYC with VNNI, times as fast as
          nn.Linear in float32 and in bfloat16: 4096x4096 at 1 / 16 / 128 / 512 tokens 2.8 / 5.9 / 4.8 / 4.1 and 2.1 / 1.8 /
          1.6 / 1.6; 1024x4096 1.6 / 2.9 / 3.0 / 3.4 and 1.4 / 1.2 / 1.3 / 1.3.
Traps     A sum holds 65793 products of full range: longer rows without groups go elsewhere. Inputs in groups would need the
          sums of each of their groups too: emulated.
"""

import torch
from torch import Tensor

from lowbit.formats import Format
from lowbit.kernels import activation as acting
from lowbit.kernels.activation import Activation
from lowbit.kernels.cpu import _build, integers

RANK = 20
FORM = "cpu.integers"
LONGEST = 65793

missing, prepare, restore = integers.missing, integers.prepare, integers.restore


def supports(format: Format, shape: tuple[int, int], device: torch.device, dtype: torch.dtype, tokens: int) -> str:
    return "for layers whose inputs are rounded"


def takes(activation: Activation, format: Format, shape: tuple[int, int], device: torch.device) -> str:
    if not activation.integer or activation.format.group[1]:
        return f"inputs in {activation}; integers with one scale a token or for all only"
    if (format.group[1] or shape[1]) > LONGEST:
        return f"{format.group[1] or shape[1]} inputs; {LONGEST} fit into 32 bits"
    return integers.refuses(format, shape, device)


def rounded(x: Tensor, prepared: dict[str, Tensor], format: Format, shape: tuple[int, int], activation: Activation) -> Tensor:
    plain = str(activation.format) in {"int8-token", "int8-row"} and activation.observer == "minmax"
    if plain and x.dtype in _build.KINDS:
        return integers.to_byte(x, activation.clip, prepared, format, shape)
    codes, scale = acting.quantize(x, activation, prepared.get(acting.STORED))
    return integers.integer(codes, scale.reshape(-1, 1).expand(len(x), 1), prepared, format, shape).to(x.dtype)

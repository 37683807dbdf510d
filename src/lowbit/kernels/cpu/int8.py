"""int8 - integers of 5 to 8 bits with one scale a row, through torch's own int8 product, bfloat16 activations.

In / Out  codes of layout "dense", 16-bit scales [out, 1] -> codes int8 [out, in], scale bf16 [out].
Idea      y = (x . q) s: the scale comes out of the sum. Codes of 5 to 7 bits are widened to 8. Many tokens: the codes become
          bfloat16, exactly, panel by panel, and the scale follows the product.
Figures   Relative error against float64, Gaussian x: 1.6e-3; a bfloat16 nn.Linear with the decoded W: 2.2e-3.
Traps     As in int4: other activations than bfloat16 run on the reference. An int8 [out, in] tensor looks like a weight to
          other loaders: this arrangement is for memory, never for files.
"""

import torch
from torch import Tensor

from lowbit.formats import Format, Parts
from lowbit.kernels import packing

RANK = 10
DECODE_TOKENS = 20
PANEL = 1 << 21


def supports(format: Format, shape: tuple[int, int], device: torch.device, dtype: torch.dtype, tokens: int) -> str:
    if device.type != "cpu":
        return f"device {device.type}; CPUs only"
    if format.element not in {"int5", "int6", "int7", "int8"} or format.zero:
        return "integers of 5 to 8 bits without zero points only"
    if format.group[0] != 1 or format.group[1] not in {0, shape[1]}:
        return "one scale a row only"
    if format.scale not in {"half", "bf16"}:
        return f"scales stored as {format.scale}; bfloat16 only"
    return "" if dtype == torch.bfloat16 else f"x is {dtype}; bfloat16 only, a cast would cost 2e-3"


def prepare(format: Format, packed: Tensor, parts: Parts, shape: tuple[int, int]) -> dict[str, Tensor]:
    codes = packing.codes(format, packed, shape)
    return {"codes": (codes - format.dtype.codes // 2).view(torch.int8), "scale": parts["scale"].flatten().contiguous()}


def restore(prepared: dict[str, Tensor], format: Format, shape: tuple[int, int]) -> tuple[Tensor, Parts]:
    codes = prepared["codes"].view(torch.uint8) + format.dtype.codes // 2
    return packing.pack_codes(format, codes), {"scale": prepared["scale"][:, None]}


def linear(x: Tensor, prepared: dict[str, Tensor], format: Format, shape: tuple[int, int]) -> Tensor:
    codes, scale = prepared["codes"], prepared["scale"]
    if x.shape[0] <= DECODE_TOKENS:
        y: Tensor = torch.ops.aten._weight_int8pack_mm(x.contiguous(), codes, scale)
        return y
    y = x.new_empty(x.shape[0], shape[0])
    step = max(1, PANEL // shape[1])
    for start in range(0, shape[0], step):
        y[:, start : start + step] = x @ codes[start : start + step].to(x.dtype).t()
    return y.mul_(scale)

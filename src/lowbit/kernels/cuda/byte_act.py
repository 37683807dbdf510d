"""byte_act - 8-bit weights with a scale a row times 8-bit inputs with a scale a token: int8 and float8 e4m3, Hopper and later.

In / Out  x [tokens, in] -> found scales and codes in one launch (activations.cu), the product in a second that begins early.
Idea      Up to 64 tokens W streams once through linear.cu, its bytes as they lie in memory being the operands: what changes its
          place is x, whose codes are written in the order in which a lane reads a row. More tokens: the vendor's products on
          the same bytes, which are row-major.
Source    Scales as lowbit.kernels.activation finds them. Sums of int8 are exact; those of e4m3 leave the tensor cores every 256
          columns, because they keep few bits there.
Figures   H200, the product alone, in a CUDA graph, weights past the L2, 4096x4096 / 14336x4096 / 4096x14336 in us: int8 1 token
          5.0 / 14.0 / 13.9, 16 tokens 5.8 / 14.8 / 15.1, 64 tokens 9.7 / 17.5 / 19.3; float8 5.3 / 14.4 / 14.2, 6.9 / 15.7 /
          17.3, 9.8 / 18.0 / 22.0; reading the bytes takes 6.1 / 15.1 / 15.1 in a kernel that does not begin early.
Traps     torch._scaled_mm takes a scale a row and a token at 256 tokens and more; below, float32 scales come after it.
"""

import torch
from torch import Tensor

from lowbit.formats import Format, Parts
from lowbit.kernels import packing
from lowbit.kernels.activation import Activation
from lowbit.kernels.cuda import _activations, _build, _product
from lowbit.kernels.cuda._activations import E4M3, INT8
from lowbit.kernels.cuda._product import Kind
from lowbit.sides import Side
from lowbit.sides.turn import Turn

RANK = 10
ELEMENTS = {"int8": INT8, "e4m3": E4M3}
KINDS = {kind: Kind(bits=16, groups=0, inputs=kind) for kind in (INT8, E4M3)}


def supports(format: Format, shape: tuple[int, int], device: torch.device, dtype: torch.dtype, tokens: int) -> str:
    return "for layers whose inputs are rounded"


def takes(activation: Activation, format: Format, shape: tuple[int, int], device: torch.device) -> str:
    if device.type != "cuda" or torch.version.hip is not None:
        return f"device {device.type} is not an NVIDIA GPU"
    if torch.cuda.get_device_capability(device)[0] != 9:
        return "the GPU is not Hopper (compute capability 9), whose wgmma no other has"
    return _build.missing() or refusal(activation, format, shape)


def refusal(activation: Activation, format: Format, shape: tuple[int, int]) -> str:
    """Why the kernel cannot run such inputs on such weights on any device, or ""."""
    inner = activation.format
    if format.element not in ELEMENTS or inner.element != format.element:
        return f"inputs {inner.element}, weights {format.element}: int8 with int8, e4m3 with e4m3 only"
    if inner.group != (1, 0) or activation.static or activation.beyond or activation.observer != "minmax":
        return f"inputs in {activation}: scales that are found for a token only"
    if format.zero or format.sides or format.group not in {(1, 0), (1, shape[1])} or format.scale not in {"half", "bf16"}:
        return f"weights in {format}: one bfloat16 scale a row, no zero only"
    if shape[1] % 64 or shape[0] % 16 or shape[1] > _activations.LONGEST:
        return f"{shape[0]}x{shape[1]}: multiples of 16 and 64, at most {_activations.LONGEST} inputs"
    return ""


def prepare(format: Format, packed: Tensor, parts: Parts, shape: tuple[int, int]) -> dict[str, Tensor]:
    """Bytes row by row, and scales as linear.cu reads them: [tiles, 8, 2], rows r and r + 8 beside each other."""
    codes = packing.codes(format, packed, shape)
    low = (codes ^ 128).view(torch.int8) if format.element == "int8" else codes.view(torch.float8_e4m3fn)
    scale = parts["scale"].to(torch.bfloat16).view(-1, 2, 8).transpose(1, 2).contiguous()
    return {"low": low, "meta": scale.view(torch.int16)}


def restore(prepared: dict[str, Tensor], format: Format, shape: tuple[int, int]) -> tuple[Tensor, Parts]:
    low = prepared["low"].view(torch.uint8)
    return packing.pack_codes(format, low ^ 128 if format.element == "int8" else low), {"scale": _scale(prepared)[:, None]}


def _scale(prepared: dict[str, Tensor]) -> Tensor:
    """Scales of the rows, bfloat16 [out]."""
    return prepared["meta"].view(torch.bfloat16).transpose(1, 2).reshape(-1)


def turned(side: Side, x: Tensor, activation: Activation) -> str:
    """Why a side is not done by the launch that rounds, or ""."""
    if not isinstance(side, Turn) or activation.beyond:
        return "only side turn, and no columns in floats"
    return _activations.refusal(x, side.block(x.shape[-1]))


def rounded(
    x: Tensor,
    prepared: dict[str, Tensor],
    format: Format,
    shape: tuple[int, int],
    activation: Activation,
    side: Turn | None = None,
) -> Tensor:
    """x [tokens, in] -> y [tokens, out] in x's type. side: turns x first."""
    kind, dtype = ELEMENTS[format.element], x.dtype
    if dtype not in {torch.bfloat16, torch.float16}:
        x = x.to(torch.bfloat16)
    few = x.shape[0] <= _product.DECODE_TOKENS
    codes, scale = _activations.quantize(x, kind, activation.clip, ordered=few, size=side.block(shape[1]) if side else 0)
    return (_few if few else _many)(codes, scale, prepared, kind, shape, x.dtype).to(dtype)


def _few(
    codes: Tensor, scale: Tensor, prepared: dict[str, Tensor], kind: int, shape: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    y = torch.empty(codes.shape[0], shape[0], dtype=dtype, device=codes.device)
    _product.launch(codes, prepared, y, KINDS[kind], (shape[0], shape[1] // 2), beside=scale)
    return y


def _many(
    codes: Tensor, scale: Tensor, prepared: dict[str, Tensor], kind: int, shape: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    own = _scale(prepared).float()
    if kind == INT8:
        return (torch._int_mm(codes, prepared["low"].t()).float() * scale[:, None] * own).to(dtype)
    y: Tensor = torch._scaled_mm(
        codes, prepared["low"].t(), scale_a=scale[:, None], scale_b=own[None], out_dtype=torch.bfloat16, use_fast_accum=False
    )
    return y.to(dtype)

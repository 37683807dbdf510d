"""byte_act - 8-bit weights times 8-bit inputs, int8 and float8 e4m3, scales of rows and tokens, or of blocks; Hopper and later.

In / Out  x [tokens, in] -> found scales and codes in one launch (activations.cu), the product in a second that begins early.
Idea      Up to 24 tokens W streams once through linear.cu, its bytes as they lie in memory being the operands: what changes its
          place is x, whose codes are written in the order in which a lane reads a row. More tokens: bytes.cu, and more than 512
          of float8 the vendor's product, on the same bytes, which are row-major. Float8 weights in blocks of 128 x 128 and
          inputs in groups of 128: sums of a group are scaled by both; more than 64 tokens: decoded, since the vendor's product
          knows no such scales everywhere.
Source    Scales as lowbit.kernels.activation finds them. Sums of int8 are exact; those of e4m3 leave the tensor cores every 256
          or 512 columns, because they keep few bits there; the vendor's (docs/decisions/018) do beyond 8192 inputs, else they
          stay. Error of y by sums: hidden behind bfloat16's 1.7e-3; of those that stay 1.3e-3 more of 4096 inputs, and 7e-2
          where all products have one sign. Rounding x and W to e4m3 costs 3e-2.
Figures   H200, the product alone, in a CUDA graph, weights past the L2, 4096x4096 / 14336x4096 / 4096x14336 in us: int8 1 token
          4.7 / 13.8 / 13.7, 16 tokens 5.6 / 14.4 / 15.1, 64 tokens 5.8 / 15.1 / 15.8 (CUTLASS 7.8 / 19.8 / 19.5); float8 5.2 /
          14.5 / 14.3, 6.0 / 14.6 / 17.3, 6.0 / 15.2 / 15.9; reading the bytes takes 6.1 / 15.1 / 15.1 in a kernel that does not
          begin early. int8 against CUTLASS: 128 to 512 tokens 1.04 to 1.7 times as fast, 1024 and 4096 0.91 to 1.05.
Traps     torch._scaled_mm with scales of rows takes 13 us at 64 tokens, where others take 7.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lowbit.formats import Format, Parts
from lowbit.kernels import packing
from lowbit.kernels.activation import Activation
from lowbit.kernels.cuda import _activations, _build, _bytes, _product
from lowbit.kernels.cuda._activations import E4M3, INT8
from lowbit.kernels.cuda._product import Kind
from lowbit.sides import Side
from lowbit.sides.turn import Turn

RANK = 10
ELEMENTS = {"int8": INT8, "e4m3": E4M3}
KINDS = {kind: Kind(bits=16, groups=0, inputs=kind) for kind in (INT8, E4M3)}
BLOCK = 128
IN_BLOCKS = Kind(bits=16, groups=256 // BLOCK, inputs=E4M3)
"""A chunk is 256 columns."""
SUMS_INSIDE = 8192
"""Inputs up to which the vendor's sums of float8 stay in the tensor cores (docs/decisions/018)."""


def supports(format: Format, shape: tuple[int, int], device: torch.device, dtype: torch.dtype, tokens: int) -> str:
    return "for layers whose inputs are rounded"


def takes(activation: Activation, format: Format, shape: tuple[int, int], device: torch.device) -> str:
    return _build.not_hopper(device) or _build.missing() or refusal(activation, format, shape)


def _in_blocks(format: Format) -> bool:
    return format.group == (BLOCK, BLOCK)


def refusal(activation: Activation, format: Format, shape: tuple[int, int]) -> str:
    """Why the kernel cannot run such inputs on such weights on any device, or ""."""
    inner = activation.format
    if format.element not in ELEMENTS or inner.element != format.element:
        return f"inputs {inner.element}, weights {format.element}: int8 with int8, e4m3 with e4m3 only"
    blocks = _in_blocks(format) and format.element == "e4m3"
    if inner.group != (1, BLOCK if blocks else 0) or activation.static or activation.beyond or activation.observer != "minmax":
        return f"inputs in {activation}: scales found for a token only, or for {BLOCK} inputs of it with weights in blocks"
    whole = format.group in {(1, 0), (1, shape[1])}
    if format.zero or format.sides or not (whole or blocks) or format.scale not in {"half", "bf16"}:
        return f"weights in {format}: one bfloat16 scale a row, or float8 in blocks of {BLOCK}, no zero only"
    if blocks and (shape[0] % BLOCK or shape[1] % BLOCK):
        return f"{shape[0]}x{shape[1]} in blocks: multiples of {BLOCK}"
    if shape[1] % 64 or shape[0] % 16 or shape[1] > _activations.LONGEST:
        return f"{shape[0]}x{shape[1]}: multiples of 16 and 64, at most {_activations.LONGEST} inputs"
    return ""


def prepare(format: Format, packed: Tensor, parts: Parts, shape: tuple[int, int]) -> dict[str, Tensor]:
    """Bytes row by row, and scales as linear.cu reads them: [tiles, 8, 2], rows r and r + 8 beside each other; in blocks
    [tiles, chunks, 2, 8, 2]. Float8: those of rows in float32 too, as the vendor's product reads them."""
    codes = packing.codes(format, packed, shape)
    low = (codes ^ 128).view(torch.int8) if format.element == "int8" else codes.view(torch.float8_e4m3fn)
    if _in_blocks(format):
        blocks = parts["scale"].to(torch.bfloat16).repeat_interleave(BLOCK // 16, 0)
        pairs = torch.nn.functional.pad(blocks, (0, blocks.shape[1] % 2)).view(len(blocks), -1, 2, 1, 1)
        return {"low": low, "meta": pairs.expand(-1, -1, -1, 8, 2).contiguous().view(torch.int16)}
    scale = parts["scale"].to(torch.bfloat16)
    prepared = {"low": low, "meta": scale.view(-1, 2, 8).transpose(1, 2).contiguous().view(torch.int16)}
    return prepared if format.element == "int8" else {**prepared, "wide": scale.float().view(1, -1)}


def restore(prepared: dict[str, Tensor], format: Format, shape: tuple[int, int]) -> tuple[Tensor, Parts]:
    low = prepared["low"].view(torch.uint8)
    scale = _blocks(prepared, shape) if _in_blocks(format) else _scale(prepared)[:, None]
    return packing.pack_codes(format, low ^ 128 if format.element == "int8" else low), {"scale": scale}


def _blocks(prepared: dict[str, Tensor], shape: tuple[int, int]) -> Tensor:
    """Scales of blocks, bfloat16 [out / 128, in / 128]."""
    meta = prepared["meta"].view(torch.bfloat16)
    return meta[:: BLOCK // 16, :, :, 0, 0].flatten(1)[:, : shape[1] // BLOCK].contiguous()


def _scale(prepared: dict[str, Tensor]) -> Tensor:
    """Scales of the rows, bfloat16 [out]."""
    return prepared["meta"].view(torch.bfloat16).transpose(1, 2).reshape(-1)


def turned(side: Side, x: Tensor, activation: Activation) -> str:
    """Why a side is not done by the launch that rounds, or ""."""
    if activation.format.group[1]:
        return "only scales of tokens"
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
    if _in_blocks(format):
        return (_few_in_blocks if few else _many_in_blocks)(x, prepared, shape, activation).to(dtype)
    run = way(kind, x.shape[0])
    codes, scale = _activations.quantize(
        x, kind, activation.clip, ordered=int(run is _few), size=side.block(shape[1]) if side else 0
    )
    return run(codes, scale, prepared, kind, shape, x.dtype).to(dtype)


Way = Callable[[Tensor, Tensor, dict[str, Tensor], int, tuple[int, int], torch.dtype], Tensor]


def way(kind: int, tokens: int) -> Way:
    """Who multiplies: linear.cu (its codes stand in another order), bytes.cu or the vendor's library."""
    if _bytes.takes(kind, tokens):
        return _own
    return _few if tokens <= _product.DECODE_TOKENS else _vendors


def _few(
    codes: Tensor, scale: Tensor, prepared: dict[str, Tensor], kind: int, shape: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    y = torch.empty(codes.shape[0], shape[0], dtype=dtype, device=codes.device)
    _product.launch(codes, prepared, y, KINDS[kind], (shape[0], shape[1] // 2), beside=scale)
    return y


def _own(
    codes: Tensor, scale: Tensor, prepared: dict[str, Tensor], kind: int, shape: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    y = torch.empty(codes.shape[0], shape[0], dtype=dtype, device=codes.device)
    _bytes.launch(codes, scale, prepared, y, kind)
    return y


def _vendors(
    codes: Tensor, scale: Tensor, prepared: dict[str, Tensor], kind: int, shape: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    w, inside = prepared["low"].t(), shape[1] <= SUMS_INSIDE
    y: Tensor = torch._scaled_mm(codes, w, scale[:, None], prepared["wide"], out_dtype=torch.bfloat16, use_fast_accum=inside)
    return y.to(dtype)


def _few_in_blocks(x: Tensor, prepared: dict[str, Tensor], shape: tuple[int, int], activation: Activation) -> Tensor:
    codes, scale = _activations.quantize(x, E4M3, activation.clip, ordered=1, grouped=True)
    y = torch.empty(x.shape[0], shape[0], dtype=x.dtype, device=x.device)
    _product.launch(codes, prepared, y, IN_BLOCKS, (shape[0], shape[1] // 2), beside=scale)
    return y


def _many_in_blocks(x: Tensor, prepared: dict[str, Tensor], shape: tuple[int, int], activation: Activation) -> Tensor:
    scale = _blocks(prepared, shape).to(x.dtype)[:, None, :, None]
    w = prepared["low"].to(x.dtype).view(-1, BLOCK, shape[1] // BLOCK, BLOCK).mul_(scale).view(shape)
    values, _ = _activations.quantize(x, E4M3, activation.clip, grouped=True, decoded=True)
    return torch.nn.functional.linear(values, w)

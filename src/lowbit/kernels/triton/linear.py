"""linear - y = x W.T for integers of 2, 3, 4 and 8 bits in Triton: any NVIDIA GPU.

In / Out  codes of layout "dense", scales [N, G], zeros uint8 -> planes (see `prepare`); x [tokens, in] -> y [tokens, out].
Idea      Few tokens: one launch that reads every code once and decodes in registers (_dense.py). Many tokens: the matrix is
          decoded once into 16 bits and multiplied by the vendor's library.
Layout    A block of P * BW columns (P = 16 / bits planes, 16 for 3 bits; BW = 128, 64 or 32, at most the group) is BW words of
          16 bits per row: word i, bits [bits * j, bits * j + bits), is column block * P * BW + j * BW + i. All rows of a block
          lie together: int16 [blocks, 1, rows, BW]. 3 bits: two such words with the lower two bits of 8 planes each, and one
          word with the third bit of all 16. Columns are padded to whole blocks.
Figures   research trial, H200, 1 token: 6.2 / 15.9 / 12.6 us for 4096x4096 / 14336x4096 / 4096x14336 (4 bits, group 128).
Traps     `count` must be zero before a call and is zero after it: one layer must not run on two streams at once.
"""

import functools
import importlib.util
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.core.errors import ShapeError
from lowbit.formats import Format
from lowbit.kernels import packing

RANK = 20
DECODE_TOKENS = 64
"""Above this many tokens the matrix is decoded first."""
MATRIX_ROWS = 16
"""Rows that one program decodes."""


@dataclass(frozen=True)
class Planes:
    """How codes of `bits` lie in words for a group: planes per block, 16-bit words per row and block."""

    bits: int
    width: int

    @property
    def count(self) -> int:
        return 16 if self.bits == 3 else 16 // self.bits

    def blocks(self, inputs: int) -> int:
        return -(-inputs // (self.count * self.width))


def planes(format: Format) -> Planes:
    """The plane layout of a format that `supports` takes."""
    bits = int(format.dtype.bits)
    group = format.group[1] or 128
    width = next(w for w in (128, 64, 32) if group % w == 0)
    return Planes(bits, min(width, 64) if bits < 4 else width)


def refusal(format: Format, dtype: torch.dtype) -> str:
    """Why planes cannot hold `format`, or ""."""
    if format.element not in {"int2", "int3", "int4", "int8"}:
        return f"element {format.element} is not int2, int3, int4 or int8"
    if format.rule not in {"symmetric", "asymmetric"} or format.scale not in {"half", "bf16", "fp16"}:
        return f"scales of {format} are not 16-bit scales of symmetric or asymmetric integers"
    if format.group[0] != 1 or format.group[1] % 32:
        return f"group {format.group[0]}x{format.group[1]} is not 1 row by a multiple of 32 inputs"
    if dtype not in {torch.bfloat16, torch.float16}:
        return f"activations are {dtype}, not bfloat16 or float16"
    return ""


def supports(format: Format, shape: tuple[int, int], device: torch.device, dtype: torch.dtype, tokens: int) -> str:
    """ "" when this kernel takes the layer, else the reason."""
    if device.type != "cuda" or torch.version.hip is not None:
        return f"device {device.type} is not an NVIDIA GPU"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return refusal(format, dtype)


def prepare(format: Format, packed: Tensor, parts: dict[str, Tensor], shape: tuple[int, int]) -> dict[str, Tensor]:
    """Arrange codes in planes. Gives low, high, scale [G, N], zero [G, N] and count."""
    rows, inputs = shape
    layout = planes(format)
    codes = packing.codes(format, packed, shape)
    blocks = layout.blocks(inputs)
    padded = torch.nn.functional.pad(codes, (0, blocks * layout.count * layout.width - inputs))
    cube = padded.view(rows, blocks, layout.count, layout.width).permute(1, 2, 0, 3)
    if layout.bits == 3:
        low = torch.stack([_words(cube[:, :8] & 3, 2), _words(cube[:, 8:] & 3, 2)], 1)
        high = _words(cube >> 2, 1)
    else:
        low, high = _words(cube, layout.bits)[:, None], torch.zeros(1, dtype=torch.int16, device=packed.device)
    prepared = {"low": low.contiguous(), "high": high.contiguous()}
    group = format.group[1]
    missing = -(-blocks * layout.count * layout.width // group) - inputs // group if group else 0
    for name in ("scale", "zero"):
        if name in parts:
            prepared[name] = torch.nn.functional.pad(parts[name].t(), (0, 0, 0, missing)).contiguous()
    prepared["count"] = torch.zeros(-(-rows // 16), dtype=torch.int32, device=packed.device)
    return prepared


def _words(cube: Tensor, bits: int) -> Tensor:
    """[blocks, planes, rows, width] codes -> int16 [blocks, rows, width]."""
    word = torch.zeros_like(cube[:, 0], dtype=torch.int32)
    for plane in range(cube.shape[1]):
        word |= cube[:, plane].int() << (bits * plane)
    return torch.where(word >= 1 << 15, word - (1 << 16), word).to(torch.int16)


def _codes(words: Tensor, bits: int, count: int) -> Tensor:
    """int16 [blocks, rows, width] -> uint8 [blocks, planes, rows, width]."""
    word = words.int() & 0xFFFF
    return torch.stack([(word >> (bits * plane)) & ((1 << bits) - 1) for plane in range(count)], 1).to(torch.uint8)


def restore(prepared: dict[str, Tensor], format: Format, shape: tuple[int, int]) -> tuple[Tensor, dict[str, Tensor]]:
    """The packed codes and parts that `prepare` was given."""
    rows, inputs = shape
    layout = planes(format)
    low = prepared["low"]
    if layout.bits == 3:
        cube = torch.cat([_codes(low[:, 0], 2, 8), _codes(low[:, 1], 2, 8)], 1) | (_codes(prepared["high"], 1, 16) << 2)
    else:
        cube = _codes(low[:, 0], layout.bits, layout.count)
    codes = cube.permute(2, 0, 1, 3).reshape(rows, -1)[:, :inputs]
    groups = format.groups(shape)[1]
    parts: dict[str, Tensor] = {}
    for name in ("scale", "zero"):
        if name in prepared:
            parts[name] = prepared[name][:groups].t().contiguous()
    packed: Tensor = packing.pack_codes(format, codes.contiguous())
    return packed, parts


def linear(x: Tensor, prepared: dict[str, Tensor], format: Format, shape: tuple[int, int]) -> Tensor:
    """x [tokens, in] -> y [tokens, out] of x's type. Raises ShapeError when x does not fit."""
    rows, inputs = shape
    if x.shape[-1] != inputs:
        raise ShapeError(f"linear of {rows}x{inputs}: x has {x.shape[-1]} inputs. Give x [tokens, {inputs}].")
    if x.shape[0] <= DECODE_TOKENS:
        return product(x.contiguous(), prepared, format, rows)
    return torch.nn.functional.linear(x, matrix(prepared, format, shape, x.dtype))


@functools.cache
def assembly(bits: int, dtype: torch.dtype) -> tuple[str, ...]:
    """PTX that takes each plane out of two neighbouring words: a pair of halves, magic + u - (magic + zero)."""
    half = "bf16" if dtype == torch.bfloat16 else "f16"
    magic = 0x43004300 if dtype == torch.bfloat16 else 0x64006400
    if bits == 8 and dtype == torch.bfloat16:
        return tuple(
            "{ .reg .b32 a, b; .reg .f32 c, d; "
            f"prmt.b32 a, $1, 0x4B000000, {0x7440 + plane}; prmt.b32 b, $1, 0x4B000000, {0x7442 + plane}; "
            "mov.b32 c, a; mov.b32 d, b; sub.f32 c, c, $2; sub.f32 d, d, $3; cvt.rn.bf16x2.f32 $0, d, c; }"
            for plane in range(2)
        )
    if bits == 3:
        return tuple(_plane3(plane, magic, half) for plane in range(16))
    mask = ((1 << bits) - 1) * 0x00010001
    return tuple(
        f"{{ .reg .b32 t; shr.b32 t, $1, {bits * plane}; lop3.b32 t, t, {mask}, {magic}, 0xea; sub.rn.{half}x2 $0, t, $2; }}"
        for plane in range(16 // bits)
    )


def _plane3(plane: int, magic: int, half: str) -> str:
    """Two bits from word $1, the third from bit `plane` of word $2."""
    move = f"shr.b32 h, $2, {plane - 2};" if plane >= 2 else f"shl.b32 h, $2, {2 - plane};"
    return (
        f"{{ .reg .b32 t, h; shr.b32 t, $1, {2 * (plane % 8)}; {move} lop3.b32 t, t, 0x00030003, {magic}, 0xea; "
        f"lop3.b32 t, h, 0x00040004, t, 0xea; sub.rn.{half}x2 $0, t, $3; }}"
    )


@dataclass(frozen=True)
class Tiles:
    """Rows, tokens and slices of K per program; warps and pipeline stages; scale weights before the product."""

    rows: int
    tokens: int
    slices: int
    warps: int
    stages: int
    early: bool = False


def tiles(tokens: int, rows: int, blocks: int) -> Tiles:
    """The tiles for a product of so many tokens, rows and blocks of columns."""
    width = next((t for t in (8, 16, 32, 64) if tokens <= t), 64)
    tall = 128 if width == 64 else 64
    wanted = max(1, (132 * 3) // max(1, -(-rows // tall)))
    slices = max(s for s in range(1, min(blocks, wanted, 16) + 1) if blocks % s == 0)
    return Tiles(tall, width, slices, 8 if width == 64 else 4, 2 if width == 64 else 3, width == 64)


def _mode(bits: int, x: Tensor) -> int:
    """How planes are decoded: 0 by plain shifts (in the interpreter), 1 by PTX in halves, 2 by PTX through float32."""
    return (2 if bits == 8 and x.dtype == torch.bfloat16 else 1) if x.is_cuda else 0


def product(x: Tensor, prepared: dict[str, Tensor], format: Format, rows: int, how: Tiles | None = None) -> Tensor:
    """x [tokens, in] -> y [tokens, out] in one launch."""
    from lowbit.kernels.triton import _dense

    tokens, inputs = x.shape
    layout = planes(format)
    blocks = layout.blocks(inputs)
    how = how or tiles(tokens, rows, blocks)
    scale = prepared["scale"]
    y = torch.empty(tokens, rows, dtype=x.dtype, device=x.device)
    grid = (-(-rows // how.rows), how.slices, -(-tokens // how.tokens))
    part = torch.empty(grid[0] * how.slices * how.rows * how.tokens if how.slices > 1 else 1, device=x.device)
    overlap = x.is_cuda and torch.cuda.get_device_capability(x.device)[0] >= 9
    options = {"num_warps": how.warps, "num_stages": how.stages} if x.is_cuda else {}
    _dense.product[grid](
        x, prepared["low"], prepared["high"], scale, prepared.get("zero", scale), y, part, prepared["count"], tokens,
        N=rows, K=inputs, KB=blocks, GROUP=format.group[1], BITS=layout.bits, ASYM="zero" in prepared, BN=how.rows,
        BM=how.tokens, BW=layout.width, SK=how.slices, EARLY=how.early, MODE=_mode(layout.bits, x),
        PLANES=assembly(layout.bits, x.dtype), PDL=overlap, **options, **({"launch_pdl": True} if overlap else {}),
    )  # fmt: skip
    return y


def matrix(prepared: dict[str, Tensor], format: Format, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The decoded matrix [out, in], rounded to `dtype`."""
    from lowbit.kernels.triton import _dense

    rows, inputs = shape
    layout, scale = planes(format), prepared["scale"]
    w = torch.empty(rows, inputs, dtype=dtype, device=scale.device)
    _dense.matrix[(-(-rows // MATRIX_ROWS), layout.blocks(inputs))](
        prepared["low"], prepared["high"], scale, prepared.get("zero", scale), w, N=rows, K=inputs, GROUP=format.group[1],
        BITS=layout.bits, ASYM="zero" in prepared, BN=MATRIX_ROWS, BW=layout.width, MODE=_mode(layout.bits, w),
        PLANES=assembly(layout.bits, dtype),
    )  # fmt: skip
    return w

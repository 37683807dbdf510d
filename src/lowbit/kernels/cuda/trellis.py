"""trellis - y = x W.T for trellis codes of 2, 3 and 4 bits and one scale (trellis2 .. trellis4), Hopper and later (linear.cu).

In / Out  packed codes, scale [1, 1] -> words a lane (see Layout); x [tokens, in] -> y [tokens, out], in the basis of the grid.
Idea      A tile's 256 places are the operand of a tensor core's product, eight weights a lane in a row of the stream, so a
          lane decodes its operand from its own bits and those of the lane before. Decoding is what takes the time: 16 bits
          out of the stream, a product, a sum of four bytes (a quarter of a product of tensor cores with ones), half a fused
          multiply-add. Up to 8 tokens the kernel divides x itself.
Layout    low: int32 [tiles, chunks of 128 columns, vectors, lane, 4 words]: for each of the chunk's 8 tiles the lane's 16
          bits (32 for 4 bits), first code highest. 3 bits: the upper 16 of its 24 bits; high: int32 [tiles, chunks, lane, 2
          words], the lower 8 of each.
Source    QTIP (2406.11235), exllamav3 for the order of places; the kernel is our own.
Figures   H200, in a CUDA graph, weights past the L2, 1 token, 4096x4096 / 14336x4096 / 4096x14336 in us: trellis2 9.6 / 22.1 /
          19.7, trellis3 10.0 / 24.0 / 21.2, trellis4 10.4 / 23.6 / 20.8 (16 tokens: 10.2 / 23.6 / 23.1, 10.6 / 24.9 / 24.6,
          10.3 / 24.0 / 24.1); cuBLAS on bfloat16 12.6 / 30.0 / 30.3. Before sums by tensor cores, even blocks, and x as it is.
Traps     Values are float16, so x is too, a sixteenth of itself: numbers beyond a million overflow, those below 1e-6 vanish.
"""

import torch
from torch import Tensor

from lowbit.core.errors import ShapeError
from lowbit.dtypes._mul1 import mul1
from lowbit.dtypes._trellis import SIDE, TILE, Trellis
from lowbit.formats import Format, Parts
from lowbit.kernels import packing
from lowbit.kernels.cuda import _build, _prefill, _product
from lowbit.kernels.cuda._product import Kind, Tiles

RANK = 30
LANES, CODES = 32, 8
LESS = 16.0
"""x is divided by it before it becomes float16."""


def supports(format: Format, shape: tuple[int, int], device: torch.device, dtype: torch.dtype, tokens: int) -> str:
    """ "" when this kernel takes the layer, else the reason."""
    return _build.not_hopper(device) or _build.missing() or refusal(format, shape, dtype)


def refusal(format: Format, shape: tuple[int, int], dtype: torch.dtype) -> str:
    """Why the words cannot hold a matrix, or ""."""
    element = format.dtype
    if not isinstance(element, Trellis) or element.rule is not mul1 or element.length != 16 or element.bits not in {2, 3, 4}:
        return f"element {format.element} is not trellis2, trellis3 or trellis4"
    if format.group != (0, 0) or format.zero or format.scale != "fp32":
        return f"{format}: one float32 scale for all, no zero only"
    if dtype not in {torch.bfloat16, torch.float16}:
        return f"activations are {dtype}, not bfloat16 or float16"
    return ""


def kind(format: Format) -> Kind:
    return Kind(int(format.dtype.bits), 0, codec=True)


def prepare(format: Format, packed: Tensor, parts: Parts, shape: tuple[int, int]) -> dict[str, Tensor]:
    """Arrange codes by lane. Gives low, scale and for 3 bits high."""
    bits = int(format.dtype.bits)
    codes = packing.codes(format, packed, shape).view(shape[0] // SIDE, shape[1] // SIDE, LANES, CODES).long()
    words = sum(codes[..., i] << bits * (CODES - 1 - i) for i in range(CODES))
    assert isinstance(words, Tensor)  # noqa: S101 - for the type checker
    words = torch.nn.functional.pad(words, (0, 0, 0, -words.shape[1] % CODES))
    words = words.unflatten(1, (-1, CODES)).transpose(2, 3)  # tiles, chunks, lane, tile of the chunk
    scale = {"scale": parts["scale"].reshape(1).float() * LESS}
    if bits == 4:
        return {"low": _signed(words).unflatten(3, (2, 4)).transpose(2, 3).contiguous(), **scale}
    low = _joined(words >> 8 if bits == 3 else words, 16)[:, :, None].contiguous()
    return {"low": low, **scale} if bits == 2 else {"low": low, "high": _joined(words & 255, 8).contiguous(), **scale}


def _joined(fields: Tensor, bits: int) -> Tensor:
    """The last axis in int32, lowest first."""
    grouped = fields.unflatten(3, (-1, 32 // bits))
    words = torch.zeros_like(grouped[..., 0])
    for i in range(32 // bits):
        words |= grouped[..., i] << bits * i
    return _signed(words)


def _signed(words: Tensor) -> Tensor:
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def _parted(words: Tensor, bits: int) -> Tensor:
    """The way back from `_joined`."""
    return torch.stack([(words >> bits * i) & ((1 << bits) - 1) for i in range(32 // bits)], -1).flatten(3).long()


def restore(prepared: dict[str, Tensor], format: Format, shape: tuple[int, int]) -> tuple[Tensor, Parts]:
    """The packed codes and the scale that `prepare` was given."""
    bits, low = int(format.dtype.bits), prepared["low"]
    if bits == 4:
        words = low.transpose(2, 3).flatten(3).long() & 0xFFFFFFFF
    else:
        words = _parted(low[:, :, 0], 16)
        words = words << 8 | _parted(prepared["high"], 8) if bits == 3 else words
    words = words.transpose(2, 3).flatten(1, 2)[:, : shape[1] // SIDE]
    codes = torch.stack([(words >> bits * (CODES - 1 - i)) & ((1 << bits) - 1) for i in range(CODES)], -1)
    packed = packing.pack_codes(format, codes.to(torch.uint8).reshape(shape[0] // SIDE, shape[1] // SIDE * TILE))
    return packed, {"scale": (prepared["scale"] / LESS).view(1, 1)}


def linear(x: Tensor, prepared: dict[str, Tensor], format: Format, shape: tuple[int, int]) -> Tensor:
    """x [tokens, in] -> y [tokens, out] of x's type. Raises ShapeError when x does not fit."""
    if x.shape[-1] != shape[1]:
        raise ShapeError(f"linear of {shape[0]}x{shape[1]}: x has {x.shape[-1]} inputs. Give x [tokens, {shape[1]}].")
    if x.shape[0] <= _product.DECODE_TOKENS:
        return product(x.contiguous(), prepared, format, shape)
    less = _less(x)
    if not _prefill.pays(x.shape[0], shape[0], prepared["low"].shape[1]):
        y = torch.nn.functional.linear(less, matrix(prepared, format, shape))
        return (y.float() * prepared["scale"]).to(x.dtype)
    y = torch.empty(x.shape[0], shape[0], dtype=x.dtype, device=x.device)
    _prefill.launch(less, prepared, y, kind(format), shape[0], prepared["scale"])
    return y


def product(x: Tensor, prepared: dict[str, Tensor], format: Format, shape: tuple[int, int], how: Tiles | None = None) -> Tensor:
    """x [tokens, in] -> y [tokens, out] in one launch, or after one that takes x to halves."""
    y = torch.empty(x.shape[0], shape[0], dtype=x.dtype, device=x.device)
    how = how or _product.tiles(kind(format), x.shape[0], shape[0], prepared["low"].shape[1])
    given = x if _product.takes_as_it_is(x.shape[0], how) else _less(x)
    _product.launch(given, prepared, y, kind(format), shape, prepared["scale"], how)
    return y


def _less(x: Tensor) -> Tensor:
    return torch.mul(x, 1 / LESS, out=torch.empty(x.shape, dtype=torch.float16, device=x.device))


def matrix(prepared: dict[str, Tensor], format: Format, shape: tuple[int, int]) -> Tensor:
    """The values of all codes, float16 [out, in], without the scale."""
    low = prepared["low"]
    w = torch.empty(shape, dtype=torch.float16, device=low.device)
    macros = _product.macros(kind(format), torch.float16, Tiles(1, 1, 1, 1, 2), 1)
    kernel = _build.kernel("linear.cu", "matrix", macros, low.device.index or 0)
    arguments = (*map(_product.address, (low, prepared.get("high"), None, None, w)), *shape, low.shape[1])
    kernel.launch((-(-low.shape[1] // 4), low.shape[0], 1), 128, arguments)
    return w

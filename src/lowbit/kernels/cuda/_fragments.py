"""_fragments - packed matrices of 2 to 6 and 8 bits and of tables as linear.cu reads them, and products with floats.

In / Out  codes of layout "dense", scales, zeros <-> words a lane, scales beside them; x [tokens, in] -> y [tokens, out].
Layout    That of cuda/linear.py, which runs it on floats; cuda/int4_act.py multiplies the same words by bytes.
"""

import functools

import torch
from torch import Tensor

from lowbit.core.errors import ShapeError
from lowbit.dtypes import Element
from lowbit.formats import Format
from lowbit.formats._scales import load, store
from lowbit.kernels import packing
from lowbit.kernels.cuda import _build, _prefill, _product
from lowbit.kernels.cuda._product import DECODE_TOKENS, Kind, Tiles

SCALES = {"half", "bf16", "e8m0"}
"""What bfloat16 holds exactly."""
WHOLE = {3: (0, 3, 6, 9, 13), 5: (0, 5, 10), 6: (0, 6)}
"""Where codes begin in half a word."""
SPARE = {3: 12, 5: 15, 6: 12}
"""The first bit that none of them takes."""


def refusal(format: Format, shape: tuple[int, int], dtype: torch.dtype) -> str:
    """Why fragments cannot hold a matrix, or ""."""
    if format.element not in {"int2", "int3", "int4", "int5", "int6", "int8"} and not _in_table(format):
        return f"element {format.element} is not int2 to int6, int8 or a table of 16 values"
    if format.rule not in {"symmetric", "asymmetric", "table", "mxfp"} or format.scale not in SCALES or format.sides:
        return f"scales of {format} are none of symmetric or asymmetric integers or of a table that bfloat16 holds"
    if format.group[0] != 1 or (format.group[1] not in {0, 32, 64} and format.group[1] % 128):
        return f"group {format.group[0]}x{format.group[1]} is not 1 row by 32, 64, a multiple of 128 or all inputs"
    if shape[1] % 8:
        return f"{shape[1]} inputs are not a multiple of 8"
    if dtype not in {torch.bfloat16, torch.float16}:
        return f"activations are {dtype}, not bfloat16 or float16"
    return ""


def _in_table(format: Format) -> bool:
    """Whether a code is the place of a value in a table of 16 (nf4, e2m1, ...)."""
    return format.rule in {"table", "mxfp"} and format.dtype.codes == 16 and not format.zero and format.dtype.step == (1, 1, 1)


def _bits(format: Format) -> int:
    return int(format.dtype.bits)


def _per_chunk(format: Format) -> int:
    """Groups that a chunk of 128 columns holds in meta; 0: a scale per row."""
    group = format.group[1]
    return 128 // min(group, 128) if group else 0


@functools.cache
def kind(format: Format) -> Kind:
    """What linear.cu must know of a format."""
    return Kind(_bits(format), _per_chunk(format), format.zero == "int", table=_in_table(format))


def prepare(format: Format, packed: Tensor, parts: dict[str, Tensor], shape: tuple[int, int]) -> dict[str, Tensor]:
    """Arrange codes in fragments. Gives low and meta, and high for 3 bits."""
    codes = packing.codes(format, packed, shape)
    pairs = _pairs(codes)
    bits = _bits(format)
    if _in_table(format):
        pairs = _neighbours(pairs)
    low, high = _spread_words(pairs, bits) if bits in WHOLE else _words(pairs, bits), None
    if bits % 2:
        low, high = low[..., :-2], low[..., -2:].contiguous()
    tiles, chunks = low.shape[:2]
    low = low.reshape(tiles, chunks, 32, -1, 4).transpose(2, 3).contiguous()
    prepared = {"low": low, "meta": _meta(format, parts, tiles, chunks)}
    if _in_table(format):
        prepared["table"] = _table(format.dtype, packed.device)
    return prepared if high is None else {**prepared, "high": high}


def _table(element: Element, device: torch.device) -> Tensor:
    """The 16 values, in bfloat16 and in float16: their lower bytes, then their upper bytes, int32 [2, 8]."""
    values = element.decode(torch.arange(16, dtype=torch.uint8))
    rows = [values.to(dtype).view(torch.uint8).view(16, 2).t().reshape(32) for dtype in (torch.bfloat16, torch.float16)]
    return torch.stack(rows).view(torch.int32).to(device)


def beside(prepared: dict[str, Tensor], dtype: torch.dtype) -> Tensor | None:
    """The table in the type of x, where there is one."""
    return prepared["table"][int(dtype == torch.float16)] if "table" in prepared else None


def _pairs(codes: Tensor) -> Tensor:
    """uint8 [rows, inputs] -> [tiles, chunks, lane, 32 pairs, 2]."""
    rows, inputs = codes.shape
    codes = torch.nn.functional.pad(codes, (0, -inputs % 128, 0, -rows % 16))
    cube = codes.view(codes.shape[0] // 16, 2, 8, codes.shape[1] // 128, 4, 2, 2, 4, 2)  # tile, half, r, chunk, u, t, p, c, e
    return cube.permute(0, 3, 2, 7, 4, 5, 6, 1, 8).reshape(cube.shape[0], cube.shape[3], 32, 32, 2)


def _neighbours(pairs: Tensor) -> Tensor:
    """Pairs of 4 bits [..., 32, 2] such that the codes of a word, which `_words` puts e by e, lie in it pair by pair."""
    return pairs.reshape(*pairs.shape[:3], 8, 2, 4).transpose(4, 5).reshape(pairs.shape)


def _from_neighbours(pairs: Tensor) -> Tensor:
    return pairs.reshape(*pairs.shape[:3], 8, 4, 2).transpose(4, 5).reshape(pairs.shape)


def _from_pairs(pairs: Tensor, shape: tuple[int, int]) -> Tensor:
    tiles, chunks = pairs.shape[:2]
    cube = pairs.view(tiles, chunks, 8, 4, 4, 2, 2, 2, 2)  # r, c, u, t, p, half, e
    codes = cube.permute(0, 7, 2, 1, 4, 5, 6, 3, 8).reshape(tiles * 16, chunks * 128)
    return codes[: shape[0], : shape[1]].contiguous()


def _signed(words: Tensor) -> Tensor:
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def _words(pairs: Tensor, bits: int) -> Tensor:
    """[tiles, chunks, lane, 32, 2] -> int32 [tiles, chunks, lane, 2 * bits]."""
    grouped = pairs.unflatten(3, (2 * bits, 16 // bits))
    words = torch.zeros(grouped.shape[:4], dtype=torch.int64, device=pairs.device)
    for i in range(16 // bits):
        words |= (grouped[..., i, 0].long() << (bits * i)) | (grouped[..., i, 1].long() << (16 + bits * i))
    return _signed(words)


def _from_words(words: Tensor, bits: int) -> Tensor:
    fields = [(words >> (bits * i + 16 * e)) & ((1 << bits) - 1) for i in range(16 // bits) for e in (0, 1)]
    return torch.stack(fields, -1).to(torch.uint8).reshape(*words.shape[:3], 32, 2)


def _spread_words(pairs: Tensor, bits: int) -> Tensor:
    """Codes of 3, 5 or 6 bits [tiles, chunks, lane, 32, 2] -> int32 [tiles, chunks, lane, 2 * bits]."""
    halves = pairs.long()[..., 0] | pairs.long()[..., 1] << 16
    whole, last = halves.split((2 * bits * len(WHOLE[bits]), 32 - 2 * bits * len(WHOLE[bits])), -1)
    whole = whole.unflatten(-1, (2 * bits, -1))
    if bits == 6:
        a, b = last.unflatten(-1, (4, 2)).unbind(-1)
        spare = torch.stack([a & 0xF000F, b & 0xF000F, a >> 4 & 0x30003 | (b >> 4 & 0x30003) << 2], -1)
    else:
        spare = torch.stack([last >> bit & 0x10001 for bit in range(bits)], -1)
    return _signed(sum((whole[..., i] << at for i, at in enumerate(WHOLE[bits])), spare.flatten(-2) << SPARE[bits]))


def _from_spread_words(words: Tensor, bits: int) -> Tensor:
    halves = torch.stack([words & 0xFFFF, words >> 16 & 0xFFFF], -1)  # tile, chunk, lane, word, e
    whole = torch.stack([halves >> at & ((1 << bits) - 1) for at in WHOLE[bits]], -2).flatten(3, 4)
    spare = (halves >> SPARE[bits]).unflatten(3, (-1, 3 if bits == 6 else bits))
    if bits == 6:
        a, b, both = (spare & 15).unbind(4)
        last = torch.stack([a | (both & 3) << 4, b | (both >> 2) << 4], 4).flatten(3, 4)
    else:
        last = sum((spare[:, :, :, :, bit] & 1) << bit for bit in range(bits))
    return torch.cat([whole, last], 3).to(torch.uint8)


def _meta(format: Format, parts: dict[str, Tensor], tiles: int, chunks: int) -> Tensor:
    """Scales, and zeros, beside the chunks they belong to: int16."""
    fields = [load(parts["scale"], format.scale).to(torch.bfloat16).view(torch.int16)]
    if "zero" in parts:
        fields.append(parts["zero"].to(torch.int16))
    return torch.stack([_meta_field(field, format, tiles, chunks) for field in fields], -2).flatten(-2).contiguous()


def _meta_field(field: Tensor, format: Format, tiles: int, chunks: int) -> Tensor:
    """[rows, G] -> [tiles, chunks, groups, 8, 2], or [tiles, 8, 2] for one scale per row."""
    per_chunk = _per_chunk(format)
    if per_chunk:
        field = field.repeat_interleave(max(format.group[1] // 128, 1), 1)
        field = torch.nn.functional.pad(field, (0, chunks * per_chunk - field.shape[1]))
    field = torch.nn.functional.pad(field, (0, 0, 0, tiles * 16 - field.shape[0]))
    cube = field.view(tiles, 2, 8, -1).permute(0, 3, 2, 1)
    return cube.reshape(tiles, chunks, per_chunk, 8, 2) if per_chunk else cube.reshape(tiles, 8, 2)


def restore(prepared: dict[str, Tensor], format: Format, shape: tuple[int, int]) -> tuple[Tensor, dict[str, Tensor]]:
    """The packed codes and parts that `prepare` was given."""
    bits = _bits(format)
    low = prepared["low"].transpose(2, 3).flatten(3)
    words = torch.cat([low, prepared["high"]], -1) if "high" in prepared else low
    pairs = _from_spread_words(words, bits) if bits in WHOLE else _from_words(words, bits)
    pairs = _from_neighbours(pairs) if _in_table(format) else pairs
    meta = prepared["meta"]
    tiles = meta.shape[0]
    fields = meta.view(tiles, -1, 8, meta.shape[-1] // 2, 2).permute(3, 0, 4, 2, 1).reshape(meta.shape[-1] // 2, tiles * 16, -1)
    step = max(format.group[1] // 128, 1)
    fields = fields[:, : shape[0], ::step][..., : format.groups(shape)[1]]
    scale = fields[0].contiguous().view(torch.bfloat16)
    parts = {"scale": store(scale, format.scale) if format.scale == "e8m0" else scale}
    if fields.shape[0] == 2:
        parts["zero"] = fields[1].to(torch.uint8)
    return packing.pack_codes(format, _from_pairs(pairs, shape)), parts


def linear(x: Tensor, prepared: dict[str, Tensor], format: Format, shape: tuple[int, int]) -> Tensor:
    """x [tokens, in] -> y [tokens, out] of x's type. Raises ShapeError when x does not fit."""
    if x.shape[-1] != shape[1]:
        raise ShapeError(f"linear of {shape[0]}x{shape[1]}: x has {x.shape[-1]} inputs. Give x [tokens, {shape[1]}].")
    if x.shape[0] <= DECODE_TOKENS:
        return product(x.contiguous(), prepared, format, shape)
    chunks = prepared["low"].shape[1]
    if not _prefill.pays(x.shape[0], shape[0], chunks):
        return torch.nn.functional.linear(x, matrix(prepared, format, shape, x.dtype))
    y = torch.empty(x.shape[0], shape[0], dtype=x.dtype, device=x.device)
    _prefill.launch(x.contiguous(), prepared, y, kind(format), shape[0], beside(prepared, x.dtype))
    return y


def product(
    x: Tensor,
    prepared: dict[str, Tensor],
    format: Format,
    shape: tuple[int, int],
    how: Tiles | None = None,
    overlap: bool = True,
) -> Tensor:
    """x [tokens, in] -> y [tokens, out] in one launch. how: another cut than `tiles` chooses; overlap: start early."""
    y = torch.empty(x.shape[0], shape[0], dtype=x.dtype, device=x.device)
    _product.launch(x, prepared, y, kind(format), shape, beside(prepared, x.dtype), how, overlap)
    return y


def matrix(prepared: dict[str, Tensor], format: Format, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The decoded matrix [out, in], rounded to `dtype`."""
    low = prepared["low"]
    w = torch.empty(shape, dtype=dtype, device=low.device)
    macros = _product.macros(kind(format), dtype, Tiles(1, 1, 1, 1, 2), 1)
    kernel = _build.kernel("linear.cu", "matrix", macros, low.device.index)
    arguments = (
        *map(_product.address, (low, prepared.get("high"), prepared["meta"], beside(prepared, dtype), w)),
        *shape,
        low.shape[1],
    )
    kernel.launch((-(-low.shape[1] // 4), low.shape[0], 1), 128, arguments)
    return w

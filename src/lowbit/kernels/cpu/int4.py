"""int4 - integers of 2, 3 and 4 bits on x86 through torch's own int4 product, bfloat16 activations.

In / Out  codes of layout "dense", 16-bit scales, integer zeros -> tiles uint8 [out, in/2] and pairs bf16 [in/g, out, 2].
Idea      torch computes sum_k x_k ((q_k - 8) s + c) with W exact in float32; c = (8 - z) s carries the zero point. Codes of 2
          and 3 bits are widened to 4 (u + 8 - 2**(b-1)): more memory than on disk, still three times faster than bfloat16.
          Many tokens: the same tiles are decoded panel by panel into bfloat16 for a plain product, so there is one copy.
Layout    The tiles' order depends on the instruction set, so it is no file format. It is found by packing known codes, once
          per number of rows: blocks of 64, 32 or 16 rows, inside a block column after column, inside a column a permutation.
Figures   Relative error against float64, Gaussian x and int4-g128: 1.6e-3 symmetric, 1.8e-3 asymmetric; a bfloat16 nn.Linear
          with the decoded W: 2.2e-3. So nothing is lost against bfloat16.
Traps     float32 and float16 activations are not cast to bfloat16 here: it would cost 2e-3 where the caller asked for more.
          They run on the reference; load the model with dtype bfloat16 to come here. Given float32, torch's op is 33 times
          slower than given bfloat16. c is rounded to bfloat16 (1/512 of at most 8 steps).
"""

import functools
import platform

import torch
from torch import Tensor

from lowbit.formats import Format, Parts
from lowbit.kernels import packing

RANK = 10
DECODE_TOKENS = 64
"""Up to here torch's product runs on the tiles; above, panels are decoded for a plain one."""
PANEL = 1 << 21
GROUPS = (256, 128, 64, 32)


def supports(format: Format, shape: tuple[int, int], device: torch.device, dtype: torch.dtype, tokens: int) -> str:
    if device.type != "cpu" or platform.machine() not in {"x86_64", "AMD64"}:
        return f"device {device.type} on {platform.machine()}; x86 CPUs only"
    if format.element not in {"int2", "int3", "int4"} or format.group[0] != 1 or format.zero == "float":
        return "integers of 2 to 4 bits with one scale a row and group only"
    if format.scale != "half":
        return f"scales stored as {format.scale}; 16 bits, exact in bfloat16 and never 0, only"
    if dtype != torch.bfloat16:
        return f"x is {dtype}; bfloat16 only, a cast would cost 2e-3"
    if shape[0] % 16:
        return f"{shape[0]} outputs; a multiple of 16 only"
    if not group(format, shape):
        return f"groups of {format.group[1] or shape[1]}; multiples of 32 only"
    return "" if order(shape[0]) else "the order of this machine's tiles is not known"


def group(format: Format, shape: tuple[int, int]) -> int:
    """The group that torch is told: the largest of its sizes that divides the format's, 0 when none does."""
    size = format.group[1] or shape[1]
    return next((g for g in GROUPS if size % g == 0 and shape[1] % g == 0), 0)


def prepare(format: Format, packed: Tensor, parts: Parts, shape: tuple[int, int]) -> dict[str, Tensor]:
    codes = packing.codes(format, packed, shape).to(torch.int32) + (8 - format.dtype.codes // 2)
    scale = parts["scale"]
    shift = torch.zeros_like(scale)
    if "zero" in parts:
        shift = ((format.dtype.codes // 2 - parts["zero"].float()) * scale.float()).to(scale.dtype)
    repeats = shape[1] // group(format, shape) // scale.shape[1]
    pairs = torch.stack((scale, shift), -1).repeat_interleave(repeats, 1).transpose(0, 1).contiguous()
    return {"tiles": torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 2), "pairs": pairs}


def restore(prepared: dict[str, Tensor], format: Format, shape: tuple[int, int]) -> tuple[Tensor, Parts]:
    scale, zero = _parts(prepared["pairs"], format, shape)
    codes = torch.empty(shape, dtype=torch.uint8)
    for start, stop, slots in order(shape[0]):
        pairs = prepared["tiles"][start:stop].reshape(-1, shape[1], len(slots) // 2)
        halves = torch.cat((pairs & 15, pairs >> 4), -1)
        codes[start:stop] = halves[..., torch.tensor(slots).argsort()].transpose(1, 2).reshape(stop - start, shape[1])
    codes -= 8 - format.dtype.codes // 2
    parts = {"scale": scale, "zero": zero} if format.zero else {"scale": scale}
    return packing.pack_codes(format, codes), parts


def linear(x: Tensor, prepared: dict[str, Tensor], format: Format, shape: tuple[int, int]) -> Tensor:
    if x.shape[0] <= DECODE_TOKENS:
        tiles, pairs = prepared["tiles"], prepared["pairs"]
        y: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x.contiguous(), tiles, group(format, shape), pairs)
        return y
    return _many(x, prepared, format, shape)


def _many(x: Tensor, prepared: dict[str, Tensor], format: Format, shape: tuple[int, int]) -> Tensor:
    """The product for many tokens: panels of W as bfloat16 [in, rows], those of the low halves, then those of the high ones."""
    size = group(format, shape)
    scale, zero = prepared["pairs"].unbind(-1)
    middle = (136 - (zero.float() / scale.float()).round_()).to(torch.bfloat16) if format.zero else None
    y = x.new_empty(x.shape[0], shape[0])
    for first, last, slots in order(shape[0]):
        wide = len(slots)
        step = max(wide, PANEL // shape[1] // wide * wide)
        for start in range(first, last, step):
            stop = min(start + step, last)
            tiles = prepared["tiles"][start:stop].reshape(-1, shape[1], wide // 2).transpose(0, 1)
            pairs = tiles.to(torch.int16, memory_format=torch.contiguous_format)
            for half in (0, 1):
                rows = _steps(slots[half * wide // 2 : (half + 1) * wide // 2])
                panel = _values(pairs, half).view(shape[1] // size, size, -1)
                panel -= 136 if middle is None else _columns(middle, start, stop, wide, rows)
                panel *= _columns(scale, start, stop, wide, rows)
                y[:, start:stop].unflatten(1, (-1, wide))[:, :, rows] = (x @ panel.flatten(0, 1)).unflatten(1, (-1, wide // 2))
    return y


def _values(pairs: Tensor, half: int) -> Tensor:
    """128 + code of one half of every byte, bfloat16: 0x4300 is 128, whose last mantissa bit counts one."""
    codes = pairs >> 4 if half else pairs & 15
    return codes.bitwise_or_(0x4300).view(torch.bfloat16)


def _columns(stored: Tensor, start: int, stop: int, wide: int, rows: slice | Tensor) -> Tensor:
    """[groups, out] -> [groups, 1, rows of the panel]."""
    found: Tensor = stored[:, start:stop].unflatten(1, (-1, wide))[:, :, rows]
    return found.flatten(1)[:, None]


def _steps(rows: tuple[int, ...]) -> slice | Tensor:
    """The rows as a slice where they are evenly spaced: copying to it is ten times faster."""
    step = rows[1] - rows[0]
    even = step > 0 and rows == tuple(range(rows[0], rows[0] + step * len(rows), step))
    return slice(rows[0], rows[-1] + 1, step) if even else torch.tensor(rows)


def _parts(pairs: Tensor, format: Format, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Scale bf16 [out, G] and zero codes uint8 [out, G]."""
    scale, shift = pairs.unbind(-1)
    repeats = shape[1] // group(format, shape) // format.groups(shape)[1]
    scale, shift = scale.t()[:, ::repeats].contiguous(), shift.t()[:, ::repeats].contiguous()
    zero = format.dtype.codes // 2 - (shift.float() / scale.float()).round_()
    return scale, zero.to(torch.uint8)


@functools.cache
def order(rows: int) -> tuple[tuple[int, int, tuple[int, ...]], ...]:
    """How the tiles of a matrix with `rows` rows lie: (first row, last row, rows of a block: those of the low halves of the
    bytes of a column, then those of the high halves).

    () when no known arrangement fits what the packer does here.
    """
    inputs = 32
    row = _probe(torch.arange(rows)[:, None].expand(rows, inputs))
    column = _probe(torch.arange(inputs).expand(rows, inputs))
    for wide in (64, 32, 16):
        whole = rows // wide * wide
        bands = [(start, stop, block) for start, stop, block in ((0, whole, wide), (whole, rows, rows % wide)) if start < stop]
        found = [(start, stop, _slots(row, column, inputs, start, stop, block)) for start, stop, block in bands]
        if all(slots for _, _, slots in found):
            return tuple(found)
    return ()


def _slots(row: Tensor, column: Tensor, inputs: int, start: int, stop: int, block: int) -> tuple[int, ...]:
    """The row of every slot of a column in blocks of `block` rows; () when the tiles do not lie so."""
    part = slice(start * inputs, stop * inputs)
    slots = row[part][:block] - start
    rows = (torch.arange(start, stop, block)[:, None, None] + slots).expand(-1, inputs, -1).flatten()
    columns = torch.arange(inputs)[:, None].expand(-1, block).flatten().repeat((stop - start) // block)
    halves = torch.cat((slots[::2], slots[1::2]))
    return tuple(halves.tolist()) if torch.equal(rows, row[part]) and torch.equal(columns, column[part]) else ()


def _probe(numbers: Tensor) -> Tensor:
    """The number of every slot of the tiles, found by packing the numbers' hexadecimal digits one after the other."""
    found = torch.zeros(numbers.numel(), dtype=torch.int64)
    for digit in range((int(numbers.max()).bit_length() + 3) // 4):
        codes = (numbers >> (4 * digit) & 15).to(torch.int32).contiguous()
        bytes_ = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 2).flatten()
        found += torch.stack((bytes_ & 15, bytes_ >> 4), -1).flatten().long() << (4 * digit)
    return found

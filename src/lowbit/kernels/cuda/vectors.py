"""vectors - y = x W.T for codes of eight weights in 16 bits, E8P and sums of two vectors, Hopper and later (linear.cu).

In / Out  packed codes, a scale for all or for a row, codebooks -> words a lane and two books (see Layout); x [tokens, in] ->
          y [tokens, out], in the basis of the grid.
Idea      Eight weights are two entries of books in shared memory, 16 bytes each: of E8P |a| and the signs, to be joined by xor,
          of additive codes the two summands. An entry is what a lane holds of 32 columns, where the lane's columns lie side by
          side; for that x changes its order within 32 columns, where halves are made of it. Eight copies of the books lie
          beside each other, so that the eight lanes that read at once meet in no bank: 64 turns a chunk, of one copy 166.
Layout    low: int32 [tiles, chunks of 128 columns, 1, lane, 4 words]: word u of lane 4r + c has the codes of the eight columns
          from 32u + 8c on, of row r in its lower half, of row r + 8 in its upper one. E8P: the lower byte of a code is signs,
          but for its lowest bit, which is their parity, the shift. high: the books, int32 [2, 256, 4], the second of additive
          codes negative.
          meta: scales of rows as in linear (additive codes); scale: float32 [1] (E8P); both times LESS.
Source    QuIP# (2402.04396), AQLM (2401.06118); the kernel is our own.
Traps     Values are float16, so x is too, a sixteenth of itself: numbers beyond a million overflow, those below 1e-6 vanish.
Figures   H200, in a CUDA graph, weights past the L2, 1 / 16 tokens, 4096x4096, 14336x4096 and 4096x14336 in us: e8p2
          6.4 / 12.4, 14.4 / 22.2, 14.0 / 22.7, aqlm2x8 alike (15.1); cuBLAS on bfloat16 13.7, 29.8, 31.7.
"""

import torch
from torch import Tensor

from lowbit.core.errors import ShapeError
from lowbit.dtypes._e8 import PLACES, sizes
from lowbit.formats import Format, Parts
from lowbit.formats._scales import load, store
from lowbit.kernels import packing
from lowbit.kernels.cuda import _build, _product
from lowbit.kernels.cuda._product import Kind, Tiles

RANK = 30
E8P, ADDITIVE = 1, 2
LESS = 16.0
"""x is divided by it before it becomes float16."""
SCALES = {"half", "bf16"}
"""Of rows: what bfloat16 holds exactly."""


def supports(format: Format, shape: tuple[int, int], device: torch.device, dtype: torch.dtype, tokens: int) -> str:
    """ "" when this kernel takes the layer, else the reason."""
    return _build.not_hopper(device) or _build.missing() or refusal(format, shape, dtype)


def refusal(format: Format, shape: tuple[int, int], dtype: torch.dtype) -> str:
    """Why the words cannot hold a matrix, or ""."""
    lattice, additive = format.element == "e8p2", format.rule == "aqlm" and format.extra_bits == 2 * 256 * 8 * 16
    if not lattice and not additive:
        return f"{format} is neither e8p2 nor aqlm2x8"
    if lattice and (format.rule != "gaussian" or format.group != (0, 0) or format.zero or format.scale != "fp32"):
        return f"{format}: one float32 scale for all, no zero only"
    if additive and format.scale not in SCALES:
        return f"{format}: scales that bfloat16 holds only"
    if shape[1] % 32:
        return f"{shape[1]} inputs are not a multiple of 32"
    if dtype not in {torch.bfloat16, torch.float16}:
        return f"activations are {dtype}, not bfloat16 or float16"
    return ""


def kind(format: Format) -> Kind:
    return Kind(2, 0, vectors=E8P if format.element == "e8p2" else ADDITIVE)


def prepare(format: Format, packed: Tensor, parts: Parts, shape: tuple[int, int]) -> dict[str, Tensor]:
    """Arrange codes by lane, and books. Gives low, high, and scale or meta."""
    lattice = format.element == "e8p2"
    codes = packing.codes(format, packed, shape).view(shape[0], shape[1] // 8, 2)
    lower = _with_shift(codes[..., 0]) if lattice else codes[..., 0]
    both = lower.long() | codes[..., 1].long() << 8
    both = torch.nn.functional.pad(both, (0, -both.shape[1] % 16, 0, -shape[0] % 16))
    cube = both.view(-1, 2, 8, both.shape[1] // 16, 4, 4)  # tile, half, r, chunk, unit, lane of the row
    words = _signed(cube[:, 0] | cube[:, 1] << 16)  # tile, r, chunk, unit, c
    low = words.permute(0, 2, 1, 4, 3).reshape(words.shape[0], -1, 1, 32, 4).contiguous()
    if lattice:
        return {"low": low, "high": _lattice(packed.device), "scale": parts["scale"].reshape(1).float() * LESS}
    books = parts["codebooks"] * torch.tensor([1, -1], dtype=torch.float16, device=packed.device)[:, None, None]
    scale = (load(parts["scale"], format.scale) * LESS).to(torch.bfloat16)
    scale = torch.nn.functional.pad(scale, (0, 0, 0, -shape[0] % 16)).view(-1, 2, 8).transpose(1, 2).contiguous()
    return {"low": low, "high": books.contiguous().view(torch.int32), "meta": scale.view(torch.int16)}


def restore(prepared: dict[str, Tensor], format: Format, shape: tuple[int, int]) -> tuple[Tensor, Parts]:
    """The packed codes and parts that `prepare` was given."""
    low, lattice = prepared["low"], format.element == "e8p2"
    words = low.view(low.shape[0], low.shape[1], 8, 4, 4).permute(0, 2, 1, 4, 3)
    cube = torch.stack([words & 0xFFFF, words >> 16 & 0xFFFF], 1)
    both = cube.reshape(low.shape[0] * 16, -1)[: shape[0], : shape[1] // 8]
    lower = (both & 255).to(torch.uint8)
    codes = torch.stack([_with_shift(lower) if lattice else lower, (both >> 8).to(torch.uint8)], 2)
    packed = packing.pack_codes(format, codes.view(shape[0], -1))
    if lattice:
        return packed, {"scale": (prepared["scale"] / LESS).view(1, 1)}
    halves = prepared["high"].view(torch.float16)
    books = halves * torch.tensor([1, -1], dtype=torch.float16, device=low.device)[:, None, None]
    scale = prepared["meta"].view(torch.bfloat16).transpose(1, 2).reshape(-1, 1)[: shape[0]].float() / LESS
    return packed, {"codebooks": books, "scale": store(scale, format.scale)}


def _signed(words: Tensor) -> Tensor:
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def _with_shift(lower: Tensor) -> Tensor:
    """Bytes of signs whose lowest bit is exchanged with their parity; again, and they are as before."""
    parity = lower ^ lower >> 4
    parity = parity ^ parity >> 2
    return lower & 254 | (parity ^ parity >> 1) & 1


def _lattice(device: torch.device) -> Tensor:
    """The books of E8P: by the lower byte masks of signs, by the upper one |a| with the sign that makes its sum even."""
    index = torch.arange(256, dtype=torch.uint8, device=device)
    bits = _with_shift(index)[:, None] >> torch.tensor(PLACES, dtype=torch.uint8, device=device) & 1
    bits[:, 0] ^= index & 1  # the shift
    masks = torch.zeros(256, 8, dtype=torch.float16, device=device).copysign_(0.5 - bits.float())
    size = sizes(device).clone()
    size[:, 7] *= 1 - 2 * (size.sum(1) % 2)
    return torch.stack([masks, size.half()]).view(torch.int32)


def linear(x: Tensor, prepared: dict[str, Tensor], format: Format, shape: tuple[int, int]) -> Tensor:
    """x [tokens, in] -> y [tokens, out] of x's type. Raises ShapeError when x does not fit."""
    if x.shape[-1] != shape[1]:
        raise ShapeError(f"linear of {shape[0]}x{shape[1]}: x has {x.shape[-1]} inputs. Give x [tokens, {shape[1]}].")
    if x.shape[0] <= _product.DECODE_TOKENS:
        return product(x, prepared, format, shape)
    y = torch.nn.functional.linear(x.mul(1 / LESS).half(), matrix(prepared, format, shape))
    return (y.float() * prepared["scale"] if "scale" in prepared else y).to(x.dtype)


def product(x: Tensor, prepared: dict[str, Tensor], format: Format, shape: tuple[int, int], how: Tiles | None = None) -> Tensor:
    """y = x W.T in one launch, or after one that makes halves of x, in the order of the lanes."""
    y = torch.empty(x.shape[0], shape[0], dtype=x.dtype, device=x.device)
    how = how or _product.tiles(kind(format), x.shape[0], shape[0], prepared["low"].shape[1])
    given = x.contiguous() if _product.takes_as_it_is(x.shape[0], how) else ordered(x)
    _product.launch(given, prepared, y, kind(format), shape, prepared.get("scale"), how)
    return y


def ordered(x: Tensor) -> Tensor:
    """A sixteenth of x in float16, as the kernel reads it: of 32 columns 8c + 2j + e at the place 8j + 2c + e."""
    given = torch.empty(x.shape, dtype=torch.float16, device=x.device)
    places = given.unflatten(1, (-1, 4, 4, 2))
    torch.mul(x.unflatten(1, (-1, 4, 4, 2)).transpose(2, 3), 1 / LESS, out=places)
    return given


def matrix(prepared: dict[str, Tensor], format: Format, shape: tuple[int, int]) -> Tensor:
    """The decoded matrix, float16 [out, in]: E8P without its scale, additive codes with LESS times that of each row."""
    low = prepared["low"]
    w = torch.empty(shape, dtype=torch.float16, device=low.device)
    macros = _product.macros(kind(format), torch.float16, Tiles(1, 1, 1, 1, 2), 1)
    kernel = _build.kernel("linear.cu", "matrix", macros, low.device.index or 0)
    pointers = map(_product.address, (low, prepared["high"], prepared.get("meta"), None, w))
    kernel.launch((-(-low.shape[1] // 4), low.shape[0], 1), 128, (*pointers, *shape, low.shape[1]))
    return w

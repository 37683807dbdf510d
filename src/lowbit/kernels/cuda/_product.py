"""_product - how a product of linear.cu is cut for a GPU, and its launch.

In / Out  x [tokens, in], prepared words (low, high, meta), y [tokens, out] to be written.
Idea      A block takes some rows and some chunks of 128 columns. Weights stream once whatever the cut is; what differs is how
          often x is read (once a block), how many bytes are on their way, and how the sums of the parts meet.
Source    `python bench/gpu_cuts.py` on an H200; rows of the best cuts: bench/results/gpu_cuts.jsonl, why: docs/LOG.md.
"""

import functools
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lowbit.kernels.cuda import _build
from lowbit.kernels.cuda._build import Pointer

DECODE_TOKENS = 64
"""Tokens up to which one launch reads the packed matrix."""
PROCESSORS = 132
"""Multiprocessors that the cuts are made for (H100, H200)."""
SHARED = _build.SHARED - _build.DECLARED
"""Bytes of dynamic shared memory that a block can have."""
BOOKS, COPIES = 2 * 256 * 16, 8
"""Of them those of two books of eight halves an entry; copies with which no lane waits for another's bank."""


@dataclass(frozen=True)
class Kind:
    """bits of a column; groups with a scale in a chunk of 128 columns (0: a scale a row); zeros beside the scales; inputs:
    0 halves, 1 int8, 2 float8 e4m3: then two bytes of x and of a row of W are a column of 16 bits. codec: trellis codes; table:
    places in a table of 16; vectors: 16 bits are eight columns, by two books: 1 E8P, 2 additive.
    """

    bits: int
    groups: int
    zeros: bool = False
    inputs: int = 0
    codec: bool = False
    table: bool = False
    vectors: int = 0


@dataclass(frozen=True)
class Tiles:
    """How a product is cut: each warp has `high` tiles of 16 rows; a block has `beside` warps over rows and `along` over
    columns; `slices` blocks share the columns; `stages` chunks wait in a warp's ring; x comes `span` rounds at a time (0:
    whole). wide: four warps multiply together (wgmma). scaled: weights are scaled before the product, not sums after it.
    copies: of books, 1 or COPIES.
    """

    high: int
    beside: int
    along: int
    slices: int
    stages: int
    span: int = 0
    wide: bool = False
    scaled: bool = False
    copies: int = 1


def tiles(kind: Kind, tokens: int, rows: int, chunks: int) -> Tiles:
    """The cut for a product of so many tokens, rows and chunks of 128 columns: the first that fits into shared memory."""
    wanted = _bytes(tokens, rows, chunks) if kind.inputs else _halves(kind, tokens, rows, chunks)
    if wanted.wide and not kind.groups:
        wanted = replace(wanted, scaled=False)
    cuts = [wanted, *(replace(wanted, stages=stages, span=stages - 1) for stages in (wanted.stages, 3, 2))]
    cuts += [replace(how, along=along) for along in (4, 2, 1) for how in cuts if along < how.along]
    found = next(how for how in cuts if shared_bytes(kind, tokens, chunks, how) <= SHARED)
    copied = _copied(kind, found)
    return copied if shared_bytes(kind, tokens, chunks, copied) <= SHARED else found


def _copied(kind: Kind, how: Tiles) -> Tiles:
    return replace(how, copies=COPIES) if kind.vectors else how


def _slices(rows: int, chunks: int) -> int:
    """Blocks that share the columns of blocks of `rows` rows: as many as there are multiprocessors for."""
    return max(n for n in (1, 2, 4, 8) if n <= max(1, min(PROCESSORS // rows, chunks // 4)))


def _one_each(kind: Kind, rows: int, chunks: int) -> Tiles | None:
    """Up to 8 tokens: a block on each multiprocessor, all as tall as each other, or two of one tile where bytes are few and no
    books are copied.

    None: too few or too many rows for that, or a width whose other cut has been measured to do as well.
    A block has 28 to 32 warps, so that no second one fits beside it: blocks of the next launch begin early, and where two fit,
    some multiprocessors get two and others none (14 warps: 22.7 us where 28 take 9.5; 12.2 with a ring that fills memory).
    """
    beside, short = -(-rows // (16 * PROCESSORS)), chunks <= 64
    if not 2 <= beside <= 8 or (beside == 2 and (kind.codec or kind.table)):
        return None
    if kind.bits > 4 and (kind.bits == 5 or beside > 2 or not short):
        return None
    if beside == 2 and kind.vectors and not short:
        return Tiles(2, 1, 16, 1, 3)
    two = beside == 2 and kind.bits < 4 and short and not kind.vectors
    return Tiles(1, 1, 16, 1, 2) if two else Tiles(1, beside, min(16, 32 // beside), 1, 2)


def _halves(kind: Kind, tokens: int, rows: int, chunks: int) -> Tiles:
    """Up to 8 tokens: about a block of 16 or 32 rows on each multiprocessor. More, and x that books leave no room for: taller
    blocks, since each reads its x."""
    long = chunks > 64
    found = _one_each(kind, rows, chunks) if tokens <= 8 else None
    if found and shared_bytes(kind, tokens, chunks, _copied(kind, found)) <= SHARED:
        return found
    if tokens <= 8 and not (found and kind.vectors):
        blocks = -(-rows // 32)
        if blocks <= PROCESSORS // 2:
            return Tiles(1, 1, 8, 2 if chunks >= 16 else 1, 5)
        return (
            Tiles(1, 1, 16, 1, 3 if long else 5)
            if blocks <= PROCESSORS
            else Tiles(2, 1, 8 if blocks <= 2 * PROCESSORS else 4, 1, 5)
        )
    few = rows <= 32 * PROCESSORS and not long
    if tokens <= 16:
        return (
            Tiles(1, 2, 8, _slices(-(-rows // 32), chunks), 2) if few else Tiles(2, 4, 4, _slices(-(-rows // 128), chunks), 2)
        )
    if tokens > DECODE_TOKENS:
        return Tiles(1, 16, 1, 1, 3, 2, True, True)
    if few:
        return Tiles(1, 4, 4, _slices(-(-rows // 64), chunks), 2, 1, True, True)
    return Tiles(1, 8, 2, _slices(-(-rows // 128), chunks), 2, 2, True, True)


def _bytes(tokens: int, rows: int, chunks: int) -> Tiles:
    """The same for bytes, where a chunk is 256 columns and arithmetic costs next to nothing."""
    few, long = rows <= 32 * PROCESSORS, chunks > 32
    if tokens <= 8:
        return Tiles(1, 2 if long else 1, 8, 1, 3 if long else 2) if few else Tiles(1, 2, 4, 1, 3)
    if tokens <= 16:
        return Tiles(1, 2, 4, 1, 3, 2 if long else 0) if few else Tiles(1, 8, 2, 1, 3, 2, True)
    if few:
        return Tiles(1, 4, 2, min(2, _slices(-(-rows // 64), chunks)), 3, 2 if long else 0, True)
    return Tiles(1, 8, 1, 1, 3, 4, True)


@functools.lru_cache(maxsize=1024)
def macros(kind: Kind, dtype: torch.dtype, how: Tiles, tokens: int) -> _build.Macros:
    halves = kind.codec or bool(kind.vectors)
    values = {
        "BITS": kind.bits, "HALF": int(halves or dtype == torch.float16), "GROUP": 4 // kind.groups if kind.groups else 0,
        "ASYM": int(kind.zeros), "ACT": kind.inputs, "SCALED": int(how.scaled), "WIDE": int(how.wide), "NT": eights(tokens),
        "RT": how.high, "WN": how.beside, "WK": how.along, "DEPTH": how.stages, "SPANS": int(how.span > 0),
        "CODEC": int(kind.codec), "LUT": int(kind.table), "VECTORS": kind.vectors, "COPIES": how.copies,
        "OUT": int(halves and dtype == torch.bfloat16),
    }  # fmt: skip
    return tuple(values.items())


def eights(tokens: int) -> int:
    """Eights of tokens that a block takes: 1, 2, 4, 8 or 16."""
    return next((n for n in (1, 2, 4, 8) if tokens <= 8 * n), 16)


def takes_as_it_is(tokens: int, how: Tiles) -> bool:
    """Whether codes of several weights make halves of x themselves, where it passes registers on its way to shared memory."""
    return eights(tokens) == 1 and not how.span


def spans(chunks: int, how: Tiles) -> tuple[int, int]:
    """Chunks of x in a buffer, and buffers."""
    whole = -(-chunks // how.slices)
    rounds = -(-whole // how.along)
    if how.span == 0 or rounds <= how.span:
        return rounds * how.along, 1
    return how.span * how.along, 2


def shared_bytes(kind: Kind, tokens: int, chunks: int, how: Tiles) -> int:
    """Shared memory of a block."""
    meta = kind.groups * 8 * (8 if kind.zeros else 4)
    ring = how.beside * how.along * how.stages * how.high * (kind.bits * 256 + meta)
    span, buffers = spans(chunks, how)
    lines = 8 * eights(tokens)
    x = buffers * span * 256 * (lines if how.wide else min(tokens, lines))
    scales = 4 * kind.groups * -(-chunks // how.slices) * lines if kind.inputs == 2 else 0
    books = how.copies * BOOKS if kind.vectors else 0
    return max(ring + x + scales + books, how.along * lines * (how.beside * how.high * 16 + 4) * 4)


def grid(tokens: int, rows: int, how: Tiles) -> tuple[int, int, int]:
    """Blocks over rows, over columns and over tokens."""
    return -(-rows // (16 * how.high * how.beside)), how.slices, -(-tokens // (8 * eights(tokens)))


def address(tensor: Tensor | None) -> Pointer:
    return Pointer(0 if tensor is None else tensor.data_ptr())


def launch(
    x: Tensor,
    prepared: dict[str, Tensor],
    y: Tensor,
    kind: Kind,
    shape: tuple[int, int],
    beside: Tensor | None = None,
    how: Tiles | None = None,
    overlap: bool = True,
) -> None:
    """y = x W.T in one launch. shape: rows and columns of W. beside: scales of tokens, or what else a kind needs. how: another
    cut than `tiles` chooses; overlap: start early."""
    tokens, rows = x.shape[0], shape[0]
    chunks = -(-shape[1] // 128)
    how = how or tiles(kind, tokens, rows, chunks)
    kernel = _build.kernel("linear.cu", "product", macros(kind, y.dtype, how, tokens), x.device.index or 0)
    weights = (prepared["low"], prepared.get("high"), prepared.get("meta"))
    blocks = grid(tokens, rows, how)
    parts = counts = None
    if how.slices > 1:
        parts = torch.empty(math.prod(blocks) * 128 * eights(tokens) * how.high * how.beside, device=x.device)
        counts = _build.counters(x.device, blocks[0] * blocks[2])
    pointers = map(address, (x, *weights, y, beside, parts, counts))
    arguments = (*pointers, tokens, *shape, chunks, spans(chunks, how)[0])
    shared = shared_bytes(kind, tokens, chunks, how)
    kernel.launch(blocks, 32 * how.beside * how.along, arguments, shared, overlap)

"""_bytes - a product of bytes with bytes for many tokens in one launch (bytes.cu), and how it is cut.

In / Out  codes of x [tokens, in] and their scales, prepared words (low, meta) of cuda.byte_act, y [tokens, out] to be written.
Idea      Both operands go by the tensor copy engine from memory to the tensor cores without a register between; sums are scaled
          and rounded where they are, so that nothing but y is written. Blocks stay and take tiles in turn.
Source    The warps' roles are those of CUTLASS 3 (warp-specialized persistent kernels); the kernel is our own.
Traps     Tensor cores keep few bits of the sums of float8: they leave them every 512 columns, and half as many rows fit.
          ptxas lets products follow one another only if they and their waits stand in a straight line.
"""

import functools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lowbit.kernels.cuda import _build
from lowbit.kernels.cuda._activations import E4M3, INT8
from lowbit.kernels.cuda._build import TensorMap
from lowbit.kernels.cuda._product import DECODE_TOKENS, PROCESSORS, address


@dataclass(frozen=True)
class Cut:
    """A block has `high` times 64 tokens and `eights` times 8 rows; `stages` times 128 columns of both lie in shared memory;
    `share` blocks of a cluster have the same rows, or, `along` the rows, the same tokens. Sums leave the tensor cores after
    `fold` stages (0: at the end). A multiprocessor has room for `blocks` of them."""

    high: int = 2
    eights: int = 32
    stages: int = 4
    share: int = 2
    along: bool = False
    fold: int = 0
    blocks: int = 1

    @property
    def outputs(self) -> int:
        """Of a block's tile."""
        return 64 * self.high * 8 * self.eights

    @property
    def threads(self) -> int:
        return 128 * self.high + 32

    @property
    def shared_bytes(self) -> int:
        return self.stages * ((64 * self.high + 8 * self.eights) * 128 + 16)

    @property
    def boxes(self) -> tuple[int, int]:
        """Tokens and rows that a block brings at once."""
        tokens, rows = 64 * self.high, 8 * self.eights
        return (tokens // self.share, rows) if self.along else (tokens, rows // self.share)

    def tiles(self, tokens: int, rows: int) -> int:
        """Tiles of a cluster."""
        high, wide = (1, self.share) if self.along else (self.share, 1)
        return -(-tokens // (64 * self.high * high)) * -(-rows // (8 * self.eights * wide))

    def clusters(self, tokens: int, rows: int) -> int:
        """As many as live at once on the GPU."""
        return min(self.blocks * PROCESSORS // self.share, self.tiles(tokens, rows))


WAYS = (
    Cut(2, 32, 4), Cut(2, 16, 6), Cut(2, 16, 6, along=True), Cut(2, 8, 8, along=True), Cut(1, 8, 12, share=1),
    Cut(1, 4, 16, share=1),
)  # fmt: skip
"""The best of those measured (bench/gpu_byte_cuts.py), and 64 rows for 65 to 256 tokens, which no row tells of.
Folded sums of 32 eights would need more registers than there are."""
CUTS = {INT8: WAYS, E4M3: tuple(replace(way, fold=4) for way in WAYS if way.eights < 32)}
TAKEN = (INT8,)
"""Kinds that it multiplies above DECODE_TOKENS tokens; the others' products are the vendor's."""
LAUNCH = 3.5
"""Microseconds of a launch: its start, the first bytes, the last writing."""
MULTIPLIED, BROUGHT, WRITTEN = 6.05e6, 7.0e4, 3.3e4
"""Of a multiprocessor and a microsecond: products of bytes, bytes from the L2, outputs. The first two agree with times."""


def takes(kind: int, tokens: int, rows: int) -> bool:
    """Whether it is the one for so many tokens. Up to DECODE_TOKENS: where linear.cu has few rows for each multiprocessor, and
    so as many bytes of x to read as of W."""
    return kind in TAKEN if tokens > DECODE_TOKENS else tokens > DECODE_TOKENS // 2 and rows <= 32 * PROCESSORS


@functools.lru_cache(maxsize=1024)
def cut(kind: int, tokens: int, rows: int, inputs: int) -> Cut:
    """The cut that should end first."""
    tried = [how for how in CUTS[kind] if (how.high == 1) == (tokens <= DECODE_TOKENS)]
    return min(tried, key=lambda how: expected(tokens, rows, inputs, how))


def expected(tokens: int, rows: int, inputs: int, how: Cut) -> float:
    """Microseconds to expect."""
    multiplied = how.outputs * 128 / MULTIPLIED
    brought = sum(how.boxes) * 128 / BROUGHT
    rounds = -(-how.tiles(tokens, rows) // how.clusters(tokens, rows))
    return LAUNCH + rounds * (-(-inputs // 128) * max(multiplied, brought) + how.outputs / WRITTEN)


@functools.lru_cache(maxsize=256)
def macros(kind: int, dtype: torch.dtype, how: Cut) -> _build.Macros:
    values = {
        "ACT": kind, "HALF": int(dtype == torch.float16), "NT": how.eights, "HIGH": how.high, "DEPTH": how.stages,
        "SHARE": how.share, "ALONG": int(how.along), "FOLD": how.fold,
        "BLOCKS": how.blocks,
    }  # fmt: skip
    return tuple(values.items())


def launch(codes: Tensor, scale: Tensor, prepared: dict[str, Tensor], y: Tensor, kind: int, how: Cut | None = None) -> None:
    """y = x W.T in one launch. scale: float32 [tokens]; inputs and rows multiples of 16; how: a cut, if not `cut`'s."""
    (tokens, inputs), rows = codes.shape, y.shape[1]
    how = how or cut(kind, tokens, rows, inputs)
    kernel = _build.kernel("bytes.cu", "bytes_by_bytes", macros(kind, y.dtype, how), codes.device.index or 0)
    matrices = (codes, prepared["low"])
    maps = (TensorMap(matrix.view(torch.int16), box) for matrix, box in zip(matrices, how.boxes, strict=True))
    arguments: tuple[int | TensorMap, ...] = (
        *maps, *map(address, (y, scale, prepared["meta"])), tokens, rows, -(-inputs // 128)
    )  # fmt: skip
    blocks = how.clusters(tokens, rows) * how.share
    kernel.launch((1, blocks, 1), how.threads, arguments, how.shared_bytes, overlap=True)

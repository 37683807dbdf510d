"""_bytes - a product of bytes with bytes for many tokens in one launch (bytes.cu), and how it is cut.

In / Out  codes of x [tokens, in] and their scales, prepared words (low, meta) of cuda.byte_act, y [tokens, out] to be written.
Idea      Both operands go by the tensor copy engine from memory to the tensor cores without a register between; sums are scaled
          and rounded where they are, so that nothing but y is written. Blocks stay and take tiles in turn.
Source    The warps' roles are those of CUTLASS 3 (warp-specialized persistent kernels); the kernel is our own.
Traps     Tensor cores keep few bits of the sums of float8: they leave them every 512 columns, and half as many rows fit.
          ptxas lets products follow one another only if they and their waits stand in a straight line. Of a copy that one lane
          asks for it makes a loop over the lanes, some 90 instructions for 128 columns, unless the lane is elect.sync's.
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
    `split` blocks (1 or 2) share the columns. Sums leave the tensor cores after `fold` stages (0: at the end)."""

    high: int
    eights: int
    stages: int
    split: int = 1
    fold: int = 0

    @property
    def outputs(self) -> int:
        """Of a block's tile."""
        return 64 * self.high * 8 * self.eights

    @property
    def threads(self) -> int:
        return 128 * self.high + 64

    @property
    def stage(self) -> int:
        """Bytes of x and W in a stage."""
        return (64 * self.high + 8 * self.eights) * 128

    @property
    def shared_bytes(self) -> int:
        """Operands and barriers of stages, scales of rows of one tile more than stages, sums of the other block."""
        inbox = 2 * self.outputs + 8 if self.split > 1 else 0
        return self.stages * (self.stage + 16) + (self.stages + 1) * 16 * self.eights + inbox

    def tiles(self, tokens: int, rows: int) -> int:
        return -(-tokens // (64 * self.high)) * -(-rows // (8 * self.eights))

    def blocks(self, tokens: int, rows: int) -> int:
        """As many as live at once on the GPU, which take tiles in turn; of split tiles all."""
        tiles = self.tiles(tokens, rows)
        return tiles * self.split if self.split > 1 else min(PROCESSORS, tiles)

    def fits(self, tokens: int, rows: int, inputs: int) -> bool:
        """Whether it is for such a product: tiles are split where all blocks live at once."""
        alone = self.split == 1 or (inputs > 128 and self.blocks(tokens, rows) <= PROCESSORS)
        return alone and (self.high == 1) == (tokens <= DECODE_TOKENS)


WAYS = (
    Cut(2, 32, 4), Cut(2, 16, 6), Cut(2, 16, 6, split=2), Cut(2, 14, 7), Cut(2, 8, 9), Cut(2, 8, 8, split=2),
    Cut(1, 16, 9), Cut(1, 14, 10), Cut(1, 8, 13), Cut(1, 8, 13, split=2),
)  # fmt: skip
"""The best of those measured (bench/gpu_byte_cuts.py), and 1, 16 for rows that fill the multiprocessors with it alone."""
CUTS = {INT8: WAYS, E4M3: tuple(replace(way, fold=4) for way in WAYS if way.eights <= 16)}
"""Folded sums of more than 16 eights would need more registers than there are."""
FEWEST, MOST_E4M3 = 25, 512
"""Tokens from which, and up to which of float8, the product is bytes.cu's: fewer are linear.cu's, more the vendor's."""
LAUNCH, JOINED = 0.4, 1.5
"""Microseconds of a launch: its start and the first bytes; of the exchange of two blocks. These and those below are fitted to
the times measured: the cut chosen is within 3 % of the best."""
CHUNK, MULTIPLIED, BROUGHT, WRITTEN = 0.063, 7.8e6, 1.21e5, 5.3e3
"""Microseconds of 128 columns beside their products; of a multiprocessor and a microsecond: products of bytes, bytes that come,
outputs."""
READ = 4.33e6
"""Bytes of W from memory in a microsecond."""


def takes(kind: int, tokens: int) -> bool:
    """Whether it is the one for so many tokens."""
    return tokens >= FEWEST and (kind == INT8 or tokens <= MOST_E4M3)


@functools.lru_cache(maxsize=1024)
def cut(kind: int, tokens: int, rows: int, inputs: int) -> Cut:
    """The cut that should end first."""
    tried = [how for how in CUTS[kind] if how.fits(tokens, rows, inputs)]
    return min(tried, key=lambda how: expected(tokens, rows, inputs, how))


def expected(tokens: int, rows: int, inputs: int, how: Cut) -> float:
    """Microseconds to expect."""
    chunk = max(CHUNK + how.outputs * 128 / MULTIPLIED, how.stage / BROUGHT)
    rounds = -(-how.tiles(tokens, rows) * how.split // PROCESSORS)
    columns = -(-inputs // (128 * how.split))
    ends = LAUNCH + rounds * how.outputs / how.split / WRITTEN + JOINED * (how.split - 1)
    return ends + max(rounds * columns * chunk, rows * inputs / READ)


@functools.lru_cache(maxsize=256)
def macros(kind: int, dtype: torch.dtype, how: Cut) -> _build.Macros:
    values = {
        "ACT": kind, "HALF": int(dtype == torch.float16), "NT": how.eights, "HIGH": how.high, "DEPTH": how.stages,
        "SPLIT": how.split, "FOLD": how.fold,
    }  # fmt: skip
    return tuple(values.items())


def launch(codes: Tensor, scale: Tensor, prepared: dict[str, Tensor], y: Tensor, kind: int, how: Cut | None = None) -> None:
    """y = x W.T in one launch. scale: float32 [tokens]; inputs and rows multiples of 16; how: a cut, if not `cut`'s."""
    (tokens, inputs), rows = codes.shape, y.shape[1]
    how = how or cut(kind, tokens, rows, inputs)
    kernel = _build.kernel("bytes.cu", "bytes_by_bytes", macros(kind, y.dtype, how), codes.device.index or 0)
    words = codes.view(torch.int16), prepared["low"].view(torch.int16)
    maps = TensorMap(words[0], 64 * how.high), TensorMap.of_pairs(words[1], how.eights // 2)
    arguments: tuple[int | TensorMap, ...] = (
        *maps, *map(address, (y, scale, prepared["meta"])), tokens, rows, -(-inputs // 128)
    )  # fmt: skip
    kernel.launch((1, how.blocks(tokens, rows), 1), how.threads, arguments, how.shared_bytes, overlap=True)

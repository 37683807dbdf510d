"""_prefill - a product of packed weights with many tokens in one launch (prefill.cu), and how it is cut.

In / Out  x [tokens, in], prepared words (low, high, meta), y [tokens, out] to be written.
Idea      Decoding a matrix first costs as much as reading and writing it in bfloat16; here the weights are decoded in registers
          while the tensor cores multiply, and only x goes through shared memory. Every multiprocessor has the same share of
          the work, whatever the shapes are.
Source    Machete (vLLM, 2024) for weights as the left operand of wgmma from registers, Stream-K (2301.03598) for the shares;
          layout and kernel are our own.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.kernels.cuda import _build, _product
from lowbit.kernels.cuda._build import TensorMap
from lowbit.kernels.cuda._product import PROCESSORS, Kind, address


@dataclass(frozen=True)
class Cut:
    """A block has `tokens` tokens and `warps` warps over 16 rows each; `stages` stages of x lie in shared memory; `share`
    blocks of a cluster bring x to each other."""

    tokens: int = 256
    warps: int = 8
    stages: int = 4
    share: int = 2

    @property
    def shared_bytes(self) -> int:
        return self.stages * self.tokens * 128 + 128 + self.tokens * (16 * self.warps + 8) * 2

    def tiles(self, tokens: int, rows: int) -> int:
        """Tiles of a cluster."""
        return -(-tokens // self.tokens) * -(-rows // (16 * self.warps * self.share))

    def clusters(self, tokens: int, rows: int, grains: int) -> int:
        """As many as live at once on the GPU. grains: of a tile."""
        return min(PROCESSORS // self.share, self.tiles(tokens, rows) * grains)


CUT = Cut()
LAUNCH, CHUNK, JOINED = 3.0, 1.5, 7.0
"""Microseconds: of a launch, of a tile's 128 columns, of the sums of one of the clusters that share a tile."""
DECODED, MULTIPLIED = 1.55e6, 7.7e8
"""Weights decoded and floating-point operations of the vendor's product a microsecond. All five measured on an H200."""


def whole(tokens: int, rows: int, chunks: int, how: Cut = CUT) -> bool:
    """Whether shares of whole tiles end before shares of chunks do."""
    tiles, parts = _times(tokens, rows, chunks, how)
    return tiles <= parts


def pays(tokens: int, rows: int, chunks: int) -> bool:
    """Whether one launch ends clearly before a decoded matrix has been multiplied by the vendor's library."""
    weights = rows * chunks * 128
    return 1.05 * min(_times(tokens, rows, chunks, CUT)) < 2 * LAUNCH + weights / DECODED + 2 * weights * tokens / MULTIPLIED


def _times(tokens: int, rows: int, chunks: int, how: Cut) -> tuple[float, float]:
    """Microseconds to expect with shares of whole tiles, and of chunks."""
    tiles, clusters = how.tiles(tokens, rows), PROCESSORS // how.share
    joining = JOINED * max(2, clusters / tiles)  # a tile's clusters write their sums, and one of them reads all
    return LAUNCH + -(-tiles // clusters) * chunks * CHUNK, LAUNCH + tiles / clusters * chunks * CHUNK + joining


@functools.lru_cache(maxsize=256)
def macros(kind: Kind, dtype: torch.dtype, how: Cut) -> _build.Macros:
    wide = dict(_product.macros(kind, dtype, _product.Tiles(1, how.warps, 1, 1, how.stages, 0, True, True), 1))
    return tuple({**wide, "NT": how.tokens // 8, "SHARE": how.share}.items())


def launch(
    x: Tensor,
    prepared: dict[str, Tensor],
    y: Tensor,
    kind: Kind,
    rows: int,
    beside: Tensor | None = None,
    how: Cut = CUT,
) -> None:
    """y = x W.T in one launch. beside: scales or a table, as a kind needs; how: another cut than the usual one."""
    kernel = _build.kernel("prefill.cu", "prefill", macros(kind, y.dtype, how), x.device.index or 0)
    tokens, chunks = x.shape[0], prepared["low"].shape[1]
    grain, parts, counts = chunks, None, None
    if not whole(tokens, rows, chunks, how):
        grain = 1
        parts = torch.empty(how.clusters(tokens, rows, chunks) * 2 * how.share * how.tokens * how.warps * 16, device=x.device)
        counts = _build.counters(x.device, how.tiles(tokens, rows) * how.share)
    clusters = how.clusters(tokens, rows, chunks // grain)
    pointers = (prepared["low"], prepared.get("high"), prepared.get("meta"), y, beside, parts, counts)
    sizes = (tokens, rows, chunks, grain)
    arguments: tuple[int | TensorMap, ...] = (TensorMap(x, how.tokens // how.share), *map(address, pointers), *sizes)
    kernel.launch((1, clusters * how.share, 1), 32 * how.warps, arguments, how.shared_bytes, overlap=True)

"""_prefill - a product of packed weights with many tokens in one launch (prefill.cu), and how it is cut.

In / Out  x [tokens, in], prepared words (low, high, meta), y [tokens, out] to be written.
Idea      Decoding a matrix first costs as much as reading and writing it in bfloat16; here the weights are decoded in registers
          while the tensor cores multiply, and only x goes through shared memory. Tiles of 256 tokens hide it best; where they
          are too few for all multiprocessors, tiles of half the tokens with two sets of warps that take turns; or tiles are
          shared so that all end together.
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
    """A block has `tokens` tokens and `split` sets, which share the columns, of `warps` warps over 16 rows each; `stages`
    stages of x lie in shared memory; `share` blocks of a cluster bring x to each other."""

    tokens: int = 256
    warps: int = 8
    stages: int = 6
    share: int = 2
    split: int = 1

    @property
    def threads(self) -> int:
        return 32 * self.warps * self.split + 128

    @property
    def shared_bytes(self) -> int:
        kept = self.tokens // self.split
        results = min(kept, 64) * (64 + 8) * 2
        told = kept * 64 * 4 if self.split > 1 else 0
        return self.stages * self.tokens * 128 + 128 + self.warps // 4 * self.split * max(results, told)

    def tiles(self, tokens: int, rows: int) -> int:
        """Tiles of a cluster."""
        return -(-tokens // self.tokens) * -(-rows // (16 * self.warps * self.share))

    def clusters(self, tokens: int, rows: int, grains: int) -> int:
        """As many as live at once on the GPU. grains: of a tile."""
        return min(PROCESSORS // self.share, self.tiles(tokens, rows) * grains)


WIDE, SPLIT = Cut(), Cut(128, 8, 8, 1, 2)
LAUNCH, ENDED, JOINED = 3.0, 2.0, 18.0
"""Microseconds: of a launch, of the end of a tile, of the sums of tiles that clusters share."""
CHUNK = {WIDE: 1.33, SPLIT: 0.7}
"""Microseconds of a tile's 128 columns."""
DECODED, MULTIPLIED = 1.55e6, 7.7e8
"""Weights decoded and floating-point operations of the vendor's product a microsecond. All measured on an H200."""


@dataclass(frozen=True)
class Plan:
    """A cut, whether shares are of whole tiles, or of chunks, and the microseconds to expect."""

    cut: Cut
    whole: bool
    time: float


@functools.lru_cache(maxsize=256)
def fastest(tokens: int, rows: int, chunks: int) -> Plan:
    """The plan that should end first. chunks: of 128 columns."""
    found = []
    for cut, chunk in CHUNK.items():
        if chunks % cut.split:
            continue
        tiles, clusters = cut.tiles(tokens, rows), PROCESSORS // cut.share
        found.append(Plan(cut, True, LAUNCH + -(-tiles // clusters) * (chunks * chunk + ENDED)))
        if cut.split == 1:
            joining = JOINED * max(1, clusters / tiles / 2)  # a tile's clusters write their sums, and one of them reads all
            found.append(Plan(cut, False, LAUNCH + tiles / clusters * chunks * chunk + joining))
    return min(found, key=lambda plan: plan.time)


def pays(tokens: int, rows: int, chunks: int) -> bool:
    """Whether one launch ends clearly before a decoded matrix has been multiplied by the vendor's library."""
    weights = rows * chunks * 128
    return 1.05 * fastest(tokens, rows, chunks).time < 2 * LAUNCH + weights / DECODED + 2 * weights * tokens / MULTIPLIED


@functools.lru_cache(maxsize=256)
def macros(kind: Kind, dtype: torch.dtype, how: Cut) -> _build.Macros:
    wide = dict(_product.macros(kind, dtype, _product.Tiles(1, how.warps, 1, 1, how.stages, 0, True, True), 1))
    return tuple({**wide, "NT": how.tokens // 8, "SHARE": how.share, "SPLIT": how.split}.items())


def launch(
    x: Tensor,
    prepared: dict[str, Tensor],
    y: Tensor,
    kind: Kind,
    rows: int,
    beside: Tensor | None = None,
    plan: Plan | None = None,
) -> None:
    """y = x W.T in one launch. beside: scales or a table, as a kind needs; plan: another than the fastest."""
    tokens, chunks = x.shape[0], prepared["low"].shape[1]
    plan = plan or fastest(tokens, rows, chunks)
    how = plan.cut
    kernel = _build.kernel("prefill.cu", "prefill", macros(kind, y.dtype, how), x.device.index or 0)
    grain, parts, counts = chunks, None, None
    if not plan.whole:
        grain = 1
        parts = torch.empty(how.clusters(tokens, rows, chunks) * 2 * how.share * how.tokens * how.warps * 16, device=x.device)
        counts = _build.counters(x.device, how.tiles(tokens, rows) * how.share)
    clusters = how.clusters(tokens, rows, chunks // grain)
    pointers = (prepared["low"], prepared.get("high"), prepared.get("meta"), y, beside, parts, counts)
    sizes = (tokens, rows, chunks, grain)
    arguments: tuple[int | TensorMap, ...] = (TensorMap(x, how.tokens // how.share), *map(address, pointers), *sizes)
    kernel.launch((1, clusters * how.share, 1), how.threads, arguments, how.shared_bytes, overlap=True)

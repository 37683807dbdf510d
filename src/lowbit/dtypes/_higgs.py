"""_higgs - grids of n points in p dimensions that are best for Gaussian numbers, computed the same on every machine.

In / Out  values of variance 1 [R, in] -> codes uint8 [R, in / p] -> values.
Idea      Lloyd's steps on samples of the normal distribution. Checkpoints store codes only, so the grid must come out alike to
          the last bit everywhere. Hence samples and points are whole numbers of 1/256: products and sums of them are exact in
          any order, and a mean is one rounded division. Samples: an additive lattice (Roberts' R sequence) through the inverse
          of the normal distribution. Start: the same, widened by sqrt((p + 2) / p), the density of the best points
          (Zador). Every coordinate's sign is fair: to each sample belongs its opposite.
Source    HIGGS (2411.17525) for the grids; Pages and Printems, Monte Carlo Methods Appl. 9 (2003) for their computation.
Traps     Powers of two alone: other sizes waste bits in a dense stream. Rounding steps change the grid: it is a file format.
"""

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.core.errors import FormatError
from lowbit.dtypes._table import Table

UNIT = 256.0
"""Points are whole numbers of 1 / UNIT."""
STAGES = ((1 << 13, 40), (1 << 15, 16), (1 << 16, 4))
"""(samples, steps): coarse first."""
CHUNK = 1 << 19
"""Scores of a temporary."""


@dataclass(frozen=True)
class Vectors:
    """The grid of n points in p dimensions; its codes take `bits` bits."""

    name: str
    p: int
    n: int
    load = 1.0

    @property
    def bits(self) -> int:
        return self.n.bit_length() - 1

    @property
    def codes(self) -> int:
        return self.n

    @property
    def step(self) -> tuple[int, int, int]:
        return 1, self.p, 1

    @property
    def minimum(self) -> float:
        return float(points(self.p, self.n).min())

    @property
    def maximum(self) -> float:
        return float(points(self.p, self.n).max())

    def encode(self, values: Tensor) -> Tensor:
        flat = values.float().reshape(-1, self.p)
        grid = _on(self.p, self.n, values.device)
        return nearest(flat, grid).to(torch.uint8).view(values.shape[0], -1)

    def decode(self, codes: Tensor) -> Tensor:
        grid = _on(self.p, self.n, codes.device)
        return grid.index_select(0, codes.reshape(-1).int()).view(codes.shape[0], -1)

    def round(self, values: Tensor) -> Tensor:
        return self.decode(self.encode(values))


def element(p: int, number: str) -> Vectors | Table:
    """The element higgs{p}x{number}. Raises FormatError."""
    name, n = f"higgs{p}x{number}", int(float(number or 0))
    if str(n) != number or n not in {4, 8, 16, 32, 64, 128, 256} or n <= p:
        raise FormatError(f"{name}: grids have 4 to 256 points, a power of two. Use one such as higgs2x16 or higgs2x256.")
    return Vectors(name, p, n) if p > 1 else Table(name, tuple(points(1, n).flatten().sort().values.tolist()))


def nearest(values: Tensor, grid: Tensor) -> Tensor:
    """The nearest point [N] of each of values [N, p]."""
    half, step = grid.square().sum(1) / 2, max(1, CHUNK // grid.shape[0])
    parts = [torch.addmm(half, part, grid.T, alpha=-1).argmin(1) for part in values.split(step)]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64, device=values.device)


@functools.cache
def points(p: int, n: int) -> Tensor:
    """The grid [n, p], float32 on the CPU."""
    grid = _normal(n, p, math.sqrt((p + 2) / p))
    for samples, steps in STAGES:
        half = _normal(samples // 2, p, 1.0)
        x = torch.cat([half, -half])
        for _ in range(steps):
            cell = nearest(x, grid)
            count = torch.bincount(cell, minlength=n)[:, None]
            total = torch.zeros(n, p, dtype=torch.float64).index_add_(0, cell, x.double())
            moved = torch.where(count > 0, (total / count.clamp_min(1)).round().float(), grid)
            if torch.equal(moved, grid):
                break
            grid = moved
    return grid / UNIT


@functools.cache
def _on(p: int, n: int, device: torch.device) -> Tensor:
    return points(p, n).to(device)


def _normal(n: int, p: int, spread: float) -> Tensor:
    """n evenly spread samples [n, p] of a normal distribution, whole numbers of 1 / UNIT."""
    root = 2.0
    for _ in range(60):
        root = (1 + root) ** (1 / (p + 1))
    steps = torch.tensor([round(2**32 / root**i) for i in range(1, p + 1)])
    places = ((torch.arange(1, n + 1)[:, None] * steps) & (2**32 - 1)).double() + 0.5
    normal: Tensor = torch.special.ndtri(places / 2**32)
    return (normal * (spread * UNIT)).round().float()

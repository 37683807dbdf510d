"""rows - the rows of a grid that are rounded apart from each other: by several processes, or piece by piece.

Idea      Rows that share nothing may be fitted and rounded anywhere; tiles of rows on a grid that all know, likewise.
"""

import functools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lowbit.core import ranks
from lowbit.formats import Format, Grid, Parts

PIECE = 1 << 21
"""Weights rounded together on a CPU: rounding keeps six float copies of them."""


@functools.cache
def separable(format: Format) -> bool:
    """Whether rows in a format share nothing, so that each process may fit and round its own; seen on the smallest matrix."""
    if format.step != (1, 1, 1) or format.group[0] != 1:
        return False
    return alone(format.fit(torch.ones(3, format.group[1] or 32), search=False))


def alone(grid: Grid) -> bool:
    """Whether the rows of a grid share nothing."""
    return grid.format.group[0] == grid.format.step[0] == 1 and all(p.shape[0] == grid.shape[0] for p in grid.parts.values())


def part(grid: Grid, rows: slice) -> Grid:
    """Some rows of a grid, whole steps, in a copy of what they share."""
    parts = {name: p[rows] for name, p in grid.parts.items()} if alone(grid) else grid.parts
    return Grid(grid.format, parts, (rows.stop - rows.start, grid.shape[1]))


def tiled(grid: Grid) -> bool:
    """Whether several processes round tiles of rows on a grid that all of them have."""
    return ranks.count() > 1 and grid.format.step[0] > 1


def pieces(grid: Grid) -> Iterator[tuple[slice, Grid]]:
    """Rows that are rounded together, with their grid: all of them, or PIECE weights at a time where rows know no others."""
    out, inputs = grid.shape
    if tiled(grid):
        rows = ranks.share(out, grid.format.step[0])
        yield rows, part(grid, rows)
        return
    step = max(1, PIECE // inputs) if alone(grid) and grid.scale.device.type == "cpu" else out
    for start in range(0, out, step):
        rows = slice(start, min(start + step, out))
        yield rows, part(grid, rows) if step < out else grid


def joined(grid: Grid, done: Sequence[tuple[Tensor, Parts]]) -> tuple[Tensor, Parts]:
    """Codes and parts of a matrix from those of its rows in order; parts that rows share are those of the first."""
    codes = torch.cat([codes for codes, _ in done])
    if len(done) == 1 or not alone(grid):
        return codes, done[0][1]
    return codes, {name: torch.cat([parts[name] for _, parts in done]) for name in done[0][1]}

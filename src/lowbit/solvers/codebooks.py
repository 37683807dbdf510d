"""codebooks - for codes that stay, the scales and vectors that lose least in H.

In / Out  W [out, in], H [in, in], a grid with the part "codebooks" [M, K, 8], codes, values -> better grid, its values.
Idea      Values are linear in the vectors: tr(E H ET) is a parabola in all of them together. Conjugate gradients, each entry by
          its own curvature first (sum of scale^2 H_jj over the places that take it), lower it at every step. Scales before: for
          each row the best in closed form. The old grid stays where the stored new one would not be better.
Source    AQLM (2401.06118), phase 2, by Adam there: 100 steps at 1e-4.
Defaults  12 steps: of a parabola with K M 8 unknowns; the next refit goes on from there.
"""

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from lowbit.formats import Grid, shelf
from lowbit.solvers import descent, ldl

STEPS = 12


def refit(weight: Tensor, moment: Tensor, grid: Grid, codes: Tensor, values: Tensor) -> tuple[Grid, Tensor]:
    """The grid with better scales and codebooks, and its values; of formats without codebooks: the best scales."""
    if "codebooks" not in grid.parts:
        return descent.refit(weight, moment, grid, codes, values)
    rule, format = shelf.get(grid.format.rule), grid.format
    scaled = rule.rescale(format, grid.parts, grid.scale + _scale_moves(weight - values, moment, grid.scale, values))
    books = _moved(weight, moment, Grid(format, scaled, grid.shape), rule, codes)
    found = Grid(format, {**scaled, "codebooks": rule.stored(books)}, grid.shape)
    tried = found.inner(codes)
    if ldl.loss(weight - tried, moment) >= ldl.loss(weight - values, moment):
        return grid, values
    return found, tried


def _scale_moves(error: Tensor, moment: Tensor, scale: Tensor, values: Tensor) -> Tensor:
    """What to add to the scale [out, 1] of each row."""
    units = values / scale
    pull = units @ moment
    curve = (pull * units).sum(1, keepdim=True)
    return torch.where(curve > 0, (pull * error).sum(1, keepdim=True) / curve, 0.0)


def _moved(weight: Tensor, moment: Tensor, grid: Grid, rule: ModuleType, codes: Tensor) -> Tensor:
    """The codebooks after some steps of conjugate gradients."""
    index = rule.indices(grid.format, codes)
    books, scale = grid.parts["codebooks"].float(), grid.scale

    def gathered(moves: Tensor) -> Tensor:
        """What moves of the vectors change in the matrix."""
        found = sum(book[i] for book, i in zip(moves, index, strict=True))
        return torch.as_tensor(found).view(weight.shape) * scale

    def scattered(slopes: Tensor) -> Tensor:
        """What slopes of the matrix mean for the vectors."""
        steps = (slopes * scale).view(-1, books.shape[2])
        return torch.stack([torch.zeros_like(book).index_add_(0, i, steps) for book, i in zip(books, index, strict=True)])

    curve = scattered(scale * moment.diagonal().expand(weight.shape))
    right = scattered((weight - gathered(books)) @ moment)
    return books + _conjugate(lambda moves: scattered(gathered(moves) @ moment), right, curve)


def _conjugate(product: Callable[[Tensor], Tensor], right: Tensor, curve: Tensor) -> Tensor:
    """x near the solution of product(x) = right, by conjugate gradients under the diagonal `curve`."""
    found, rest = torch.zeros_like(right), right
    size = curve.clamp_min(1e-6 * float(curve.mean()) + 1e-30)
    way = rest / size
    power = float((rest * way).sum(dtype=torch.float64))
    for _ in range(STEPS):
        slope = product(way)
        bend = float((way * slope).sum(dtype=torch.float64))
        if not bend > 0 or not power > 0:
            break
        found = found + way * (power / bend)
        rest = rest - slope * (power / bend)
        old, power = power, float((rest * rest / size).sum(dtype=torch.float64))
        way = rest / size + way * (power / old)
    return found

"""_table_search - the scale of each group that loses least, for elements of any values, weighted by importance.

In / Out  groups x [R, G, n], importance h broadcastable to it, candidate scales -> scale [R, G].
Idea      As in _search.py: for the values v that a candidate s gives, the loss sum h (x - s v)^2 is a parabola in s with its
          least point at s + a / b, a = sum h (x - s v) v, b = sum h v^2; so each candidate brings its own best scale. The best,
          after rounding to what is stored, is refitted twice.
Source    Alternation of values and scale: Lloyd.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from lowbit.dtypes import Element
from lowbit.formats import _search as searching

REFITS = 2


def absmax(x: Tensor, greatest: float) -> Tensor:
    """The scale [R, G] that puts the largest magnitude of a group on `greatest`; 1 for a group of zeros."""
    size = x.abs().amax(-1)
    return torch.where(size > 0, size / greatest, 1.0)


def search(x: Tensor, h: Tensor | None, candidates: Iterable[Tensor], element: Element, kind: str) -> Tensor:
    """The best stored scale [r, G] among the candidates, their own best scales, and two refits of the best."""
    best, loss = None, torch.full(x.shape[:2], float("inf"), device=x.device)
    for start in candidates:
        tried, error = _improve(x, h, searching.rounded(start, kind), element, kind)
        best = tried if best is None else torch.where(error < loss, tried, best)
        loss = torch.minimum(error, loss)
    if best is None:
        raise ValueError("search: no candidates were given. Give one scale at least.")
    for _ in range(REFITS):
        tried, error = _improve(x, h, best, element, kind)
        best = torch.where(error < loss, tried, best)
        loss = torch.minimum(error, loss)
    return best


def pick(x: Tensor, h: Tensor | None, candidates: Iterable[Tensor], element: Element) -> Tensor:
    """The index [r, G] of the candidate scale that loses least; the earlier one of equals."""
    best, loss = None, torch.full(x.shape[:2], float("inf"), device=x.device)
    for index, scale in enumerate(candidates):
        rest = x - element.round(x / scale[..., None]).mul_(scale[..., None])
        error = (rest.square_() if h is None else rest.square_().mul_(h)).sum(-1)
        best = torch.zeros_like(error, dtype=torch.int32) if best is None else torch.where(error < loss, index, best)
        loss = torch.minimum(error, loss)
    if best is None:
        raise ValueError("pick: no candidates were given. Give one scale at least.")
    return best


def _improve(x: Tensor, h: Tensor | None, scale: Tensor, element: Element, kind: str) -> tuple[Tensor, Tensor]:
    """The stored scale that is best for the values at `scale` [r, G], and its loss."""
    values = element.round(x / scale[..., None])
    rest = torch.addcmul(x, values, scale[..., None], value=-1)
    weighted = values if h is None else values * h
    a, b = (weighted * rest).sum(-1), (weighted * values).sum(-1)
    best = searching.rounded(torch.where(b > 0, scale + a / b, scale), kind)
    move = best - scale
    loss = (rest.square() if h is None else rest.square().mul_(h)).sum(-1)
    return best, loss + move * (move * b - 2 * a)

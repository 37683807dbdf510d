"""_kmeans - centroids that lose least: of the numbers of each row, of vectors; weighted, the same in every run.

Idea      Numbers: clusters of sorted numbers are intervals, and sums over an interval are differences of running sums. Dynamic
          programming over up to CUTS places where an interval may end finds the best intervals of all; Lloyd's steps then move
          the ends to any place. Rows of up to CUTS numbers are solved exactly.
          Vectors: Lloyd's steps from vectors spread over the norm order; a cluster that loses its vectors keeps its centroid.
Source    Wang and Song, Ckmeans.1d.dp, R Journal 3/2 (2011) for the dynamic programming.
Traps     Sums are in float64: differences of running sums cancel.
"""

import torch
from torch import Tensor

CUTS = 128
ROUNDS = 50
CHUNK = 1 << 19
"""Numbers of a temporary."""


def rows(values: Tensor, weights: Tensor | None, k: int, exact: bool = True) -> Tensor:
    """Centroids [rows, k], ascending, of values [rows, n] weighted by weights [rows or 1, n] (not all 0 in a row).

    exact: start from the best intervals (cost k CUTS**2 a row), else from equal shares of the weight.
    """
    cuts = min(CUTS, values.shape[1])
    step = max(1, CHUNK // max(cuts * cuts, values.shape[1]))
    found = []
    for start in range(0, values.shape[0], step):
        part = slice(start, start + step)
        given = None if weights is None else weights.expand_as(values)[part]
        found.append(_some_rows(values[part], given, k, cuts if exact else 0))
    return torch.cat(found)


def _some_rows(values: Tensor, weights: Tensor | None, k: int, cuts: int) -> Tensor:
    x, order = values.double().sort(1)
    h = torch.ones_like(x) if weights is None else weights.double().gather(1, order)
    sums = torch.nn.functional.pad(torch.stack([h, h * x, h * x * x]).cumsum(2), (1, 0))
    ends = _best_ends(sums, k, cuts) if cuts else _equal_ends(sums[0], k)
    centroids = _means(sums, ends, x)
    for _ in range(ROUNDS):
        middles = (centroids[:, 1:] + centroids[:, :-1]) / 2
        moved = torch.nn.functional.pad(torch.searchsorted(x, middles), (1, 0))
        moved = torch.cat([moved, torch.full_like(moved[:, :1], x.shape[1])], 1)
        if torch.equal(moved, ends):
            break
        ends = moved
        centroids = _means(sums, ends, x)
    return centroids.to(values.dtype)


def _equal_ends(mass: Tensor, k: int) -> Tensor:
    """Ends [rows, k + 1] of intervals that hold equal shares of the weight."""
    shares = torch.linspace(0, 1, k + 1, dtype=torch.float64, device=mass.device)[1:-1] * mass[:, -1:]
    inner = torch.searchsorted(mass, shares).clamp_max(mass.shape[1] - 1)
    first = torch.zeros_like(inner[:, :1])
    return torch.cat([first, inner, first + mass.shape[1] - 1], 1)


def _best_ends(sums: Tensor, k: int, cuts: int) -> Tensor:
    """Ends [rows, k + 1] of the best intervals among those that end at `cuts` evenly spread places."""
    n = sums.shape[2] - 1
    places = torch.linspace(0, n, cuts + 1, dtype=torch.float64, device=sums.device).round().long()
    s0, s1, s2 = sums[:, :, places]
    mass, first, second = (s[:, None, :] - s[:, :, None] for s in (s0, s1, s2))
    cost = (second - first.square() / mass.clamp_min(1e-300)).clamp_min_(0)
    cost.masked_fill_(torch.ones(cuts + 1, cuts + 1, dtype=torch.bool, device=cost.device).tril(-1), torch.inf)
    best, came = cost[:, 0], []
    for _ in range(1, k):
        best, source = (best[:, :, None] + cost).min(1)
        came.append(source)
    ends = [torch.full((len(s0), 1), cuts, device=sums.device)]
    for source in reversed(came):
        ends.append(source.gather(1, ends[-1]))
    ends.append(torch.zeros_like(ends[0]))
    return places[torch.cat(ends[::-1], 1)]


def _means(sums: Tensor, ends: Tensor, x: Tensor) -> Tensor:
    """Weighted means [rows, k] of the intervals; an interval without weight has the number at its place."""
    mass, first, _ = sums.gather(2, ends.expand(3, -1, -1)).diff(dim=2)
    there = x.gather(1, ends[:, :-1].clamp_max(x.shape[1] - 1))
    return torch.where(mass > 0, first / mass.clamp_min(1e-300), there).sort(1).values


def two(values: Tensor, weights: Tensor) -> tuple[Tensor, float]:
    """The two centroids [rows, 2] of values [rows, n] that lose least, by all splits, and what all rows lose. Cost n log n."""
    ordered, order = values.double().sort(1)
    h = weights.double().gather(1, order)
    mass, first = h.cumsum(1), (h * ordered).cumsum(1)
    rest, other = (mass[:, -1:] - mass).clamp_min(1e-12), first[:, -1:] - first
    other[:, -1] = 0.0
    # the loss is sum h x^2 less what the means explain, so the best split explains most
    explained = first.square() / mass + other.square() / rest
    at = explained.argmax(1, keepdim=True)
    low, high = first.gather(1, at) / mass.gather(1, at), other.gather(1, at) / rest.gather(1, at)
    high = torch.where(at == values.shape[1] - 1, low, high)
    return torch.cat([low, high], 1).float(), float((h * ordered.square()).sum() - explained.gather(1, at).sum())


def vectors(values: Tensor, weights: Tensor, k: int, rounds: int) -> Tensor:
    """Centroids [k, width] of vectors [n, width], weighted by weights [n, 1]; n <= k: the vectors themselves, then zeros."""
    n = values.shape[0]
    if n <= k:
        return torch.nn.functional.pad(values, (0, 0, 0, k - n))
    order = values.square().sum(1).argsort(stable=True)
    centroids = values[order[torch.arange(k, device=values.device) * n // k]]
    for _ in range(rounds):
        cell = nearest(values, centroids)
        mass = torch.zeros_like(centroids[:, :1]).index_add_(0, cell, weights)
        total = torch.zeros_like(centroids).index_add_(0, cell, weights * values)
        centroids = torch.where(mass > 0, total / mass.clamp_min(1e-30), centroids)
    return centroids


def nearest(values: Tensor, centroids: Tensor) -> Tensor:
    """The nearest centroid [n] of each vector [n, width]."""
    half, step = centroids.square().sum(1) / 2, max(1, CHUNK // centroids.shape[0])
    return torch.cat([torch.addmm(half, part, centroids.T, alpha=-1).argmin(1) for part in values.split(step)])

"""_e8 - 65536 vectors of the lattice E8, shifted by 1/4: what a 16-bit code says, and the nearest of them.

Idea      E8 + 1/4 is D8^ + 1/4 and D8^ - 1/4, D8^ the half-integers of even sum. 256 vectors |a| of D8^ (norm^2 <= 10, and 29
          of norm^2 12), seven free signs (the eighth is told by the sum) and the shift: 16 bits, made from 256 vectors.
          Code: high byte which |a|; low byte signs, whose parity is the shift.
          Nearest: for each shift the signs of x - shift are best; where they give the wrong parity, the entry that costs least
          is turned over: 2 * 256 scores a vector instead of 65536.
Source    QuIP# (2402.04396), latticee8_padded12.py, for code and order of entries.
"""

import functools
import itertools

import torch
from torch import Tensor

LONG = (
    "31113333 13113333 11313333 11133333 33313311 33313131 33311331 33313113 33311313 33311133 33133311 33133131 33131331 "
    "33133113 33131313 33131133 31333311 31333131 31331331 31333113 31331313 13331133 13333311 13333131 13331331 13333113 "
    "13331313 11331333 33113331"
)
"""The vectors of norm^2 12, times 2."""
PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""The sign bit of each coordinate."""
CHUNK = 1024
"""Vectors rounded at once."""


@functools.cache
def sizes(device: torch.device) -> Tensor:
    """The 256 vectors |a| [256, 8] in the order of the code."""
    inner = [v for v in itertools.product((1, 3, 5), repeat=8) if sum(n * n for n in v) <= 40]
    outer = [tuple(map(int, text)) for text in LONG.split()]
    return torch.tensor([*inner, *outer], dtype=torch.float32, device=device) / 2


@functools.cache
def points(device: torch.device) -> Tensor:
    """The 65536 vectors [65536, 8] by code."""
    codes = torch.arange(1 << 16, device=device)
    bits = codes[:, None] >> torch.tensor(PLACES, device=device) & 1
    shift = bits.sum(1) % 2
    bits[:, 0] ^= shift
    bits[:, 7] ^= sizes(device)[codes >> 8].sum(1).long() % 2
    return sizes(device)[codes >> 8] * (1 - 2 * bits) + (0.25 - 0.5 * shift[:, None])


@functools.cache
def short(device: torch.device) -> Tensor:
    """256 vectors of E8 [256, 8]: 0, the 240 of norm^2 2, +-2 on one coordinate but for -2 on the last."""
    pairs = [v for v in itertools.product((-1.0, 0.0, 1.0), repeat=8) if sum(map(abs, v)) == 2]
    halves = [v for v in itertools.product((-0.5, 0.5), repeat=8) if sum(v) % 2 == 0]
    ends = [tuple(s if i == j else 0.0 for j in range(8)) for i in range(8) for s in (2.0, -2.0)]
    return torch.tensor([(0.0,) * 8, *pairs, *halves, *ends[:-1]], device=device)


def nearest(x: Tensor) -> Tensor:
    """The code [N] of the nearest of the 65536 vectors for each of x [N, 8], int64."""
    found = [_nearest(part) for part in x.split(CHUNK)]
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.int64, device=x.device)


def _nearest(x: Tensor) -> Tensor:
    size = sizes(x.device)
    odd = size.sum(1).long() % 2
    best = torch.full((len(x),), -torch.inf, device=x.device)
    codes = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    for shift in (0, 1):
        y = x - (0.25 - 0.5 * shift)
        far, minus = y.abs(), (y < 0).long()
        score = torch.addmm(-size.square().sum(1), far, size.T, alpha=2)
        cost = functools.reduce(torch.minimum, (far[:, i, None] * size[:, i] for i in range(8)))
        wrong = (minus.sum(1, keepdim=True) + odd) % 2
        top, which = (score - 4 * wrong * cost + 2 * x.sum(1, keepdim=True) * (0.25 - 0.5 * shift)).max(1)
        turned = (far * size[which]).argmin(1, keepdim=True)
        minus.scatter_add_(1, turned, wrong.gather(1, which[:, None]))
        minus[:, 7] += odd[which]
        signs = (minus % 2 << torch.tensor(PLACES, device=x.device)).sum(1) ^ shift
        codes = torch.where(top > best, which << 8 | signs, codes)
        best = torch.maximum(best, top)
    return codes


def nearest_short(x: Tensor) -> Tensor:
    """The code [N] of the nearest of the 256 short vectors."""
    vectors = short(x.device)
    return torch.addmm(vectors.square().sum(1) / 2, x, vectors.T, alpha=-1).argmin(1)

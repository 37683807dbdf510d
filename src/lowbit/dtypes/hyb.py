"""hyb - trellis codes of 1 to 4 bits, two values a step looked up in a table of 512 pairs.

In / Out  values of root mean square 0.968 [16 R, in] -> codes [R, in * 8] in uint8 -> values; see _trellis.py.
Idea      h = (state + 1) * state, low 16 bits; pair number (h >> 6) & 511 of a table, its first value negated where bit 15 of h
          is set. The table: 512 centres of k-means on the 2-D normal distribution, at size .9682458, in half precision; made
          here from 2**14 points of a lattice (R2) by 12 rounds, without random numbers.
Source    QTIP (2406.11235), HYB; its table is another one of the same kind, and there it may be trained.
Figures   Mean squared error on N(0,1), best scale: .0709 .0189 .0055 at 2, 3, 4 bits.
Traps     Worse than trellis2 .. trellis4: here to be compared. The table comes out of float64 sums: keep files made with it to
          one release of torch.
"""

from functools import cache

import torch
from torch import Tensor

from lowbit.dtypes._trellis import Trellis, whole

EXAMPLES = ("hyb2", "hyb3", "hyb4")
PAIRS, POINTS, ROUNDS = 512, 1 << 14, 12
SIZE = 0.9682458
PLASTIC = 1.324717957244746


def pair_number(states: Tensor) -> tuple[Tensor, Tensor]:
    """Which pair a state takes, and whether its first value is negated."""
    mixed = (states + 1) * states
    return mixed >> 6 & PAIRS - 1, (mixed >> 15 & 1) == 1


def rule(states: Tensor) -> Tensor:
    """Two values of each state [n, 2]."""
    number, negated = pair_number(states)
    pairs = table()[number]
    pairs[:, 0] = torch.where(negated, -pairs[:, 0], pairs[:, 0])
    return pairs


@cache
def table() -> Tensor:
    """The 512 pairs, float16 [512, 2]."""
    order = torch.arange(1, POINTS + 1, dtype=torch.float64)
    points = torch.stack([(0.5 + order / PLASTIC) % 1, (0.5 + order / PLASTIC**2) % 1], 1)
    points = torch.special.ndtri(points)
    centres: Tensor = points[:PAIRS]
    for _ in range(ROUNDS):
        nearest = (points @ centres.T - centres.square().sum(1) / 2).argmax(1)
        total = torch.zeros_like(centres).index_add_(0, nearest, points)
        centres = total / nearest.bincount(minlength=PAIRS)[:, None]
    return (centres * (SIZE / centres.square().mean().sqrt())).half()


def element(number: str) -> Trellis:
    return Trellis(f"hyb{number}", 2 * whole("hyb", number, 4), rule, width=2)

"""_viterbi - the encoder of trellis codes: the path whose values lie nearest to given ones, its ends tied together.

In / Out  values [N, T, V] float32, a Code (values of all 2**L states) -> the F fresh bits of each of the T steps, uint8 [N, T].
Idea      Viterbi's search over all states at once. With R = 2**(L - F) and state s = r << F | b,
              least[r] = min_j cost[j * R + r],   cost'[r << F | b] = least[r] + |value(s) - x|**2.
          Sequences are the last axis, so that nothing moves fewer than LANES numbers at a time, and the squares of all states
          and sequences are one product of [S, V + 2] and [V + 2, N]: |v|**2 - 2 v x + |x|**2. No back pointers: every `least`
          is kept, and the way back tries the 2**F predecessors of each state.
          Tail-biting in two passes (QTIP): 1. around the joint alone, WARM values on both sides with free ends, tells the
          L - F bits there; 2. the whole sequence from these bits to these bits.
Source    QTIP (2406.11235), section 3; pass 1 there is the whole sequence, rolled by half.
Defaults  WARM: against 128 values on both sides the error of trellis2, 3, 4 grows by .2 .3 .1 % at 96, .8 .5 .4 % at 64 and
          1.6 % at 32 (64 tiles, standard error .1 to .3); the time falls by 12, 20 and 28 %. Half as much with L = 12.
Traps     Approximate: the bits of pass 1 need not be those of the best closed path. On a GPU the product wants full float32:
          with TF32 allowed it loses the low bits that codes above 3 bits need.
"""

import threading
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import pad

WARM = 96
LANES = 16
MEMORY_CPU, MEMORY_GPU = 1 << 29, 1 << 32
CACHE_CPU, MOST_CPU = 1 << 23, 256
_KEPT = threading.local()


@dataclass(frozen=True, eq=False)
class Code:
    """A trellis code for the search. table: the V values of each state [2**L, V]; fresh: F, the bits that a step adds."""

    table: Tensor
    fresh: int

    @property
    def branches(self) -> int:
        return 1 << self.fresh

    @property
    def roots(self) -> int:
        """R, how many states are alike but for their oldest F bits."""
        return len(self.table) >> self.fresh

    @cached_property
    def ends(self) -> tuple[float, float]:
        """The least and the greatest value, looked for once: torch shares so many numbers out among threads, which wait."""
        return self.table.min().item(), self.table.max().item()


def search(values: Tensor, code: Code) -> Tensor:
    """The fresh bits of near closed paths [N, T], uint8. N may be anything; it is filled up to LANES and cut into parts."""
    number, steps, _ = values.shape
    part = _part(4 * len(code.table), 4 * code.roots * steps, values.device.type)
    filled = pad(values, (0, 0, 0, 0, 0, -number % LANES)).permute(1, 2, 0)
    room = _room(steps * code.roots * min(part, filled.shape[2]), values)
    found = [_closed(x.contiguous(), code, room) for x in filled.split(part, 2)]
    return torch.cat(found, 1)[:, :number].t().to(torch.uint8).contiguous()


def _part(costs: int, kept: int, kind: str) -> int:
    """How many sequences to search together, given the bytes of each: on the CPU `cost` should stay in the cache."""
    most = min(MEMORY_CPU // kept, CACHE_CPU // costs, MOST_CPU) if kind == "cpu" else MEMORY_GPU // kept
    return max(LANES, most // LANES * LANES)


def _room(size: int, like: Tensor) -> Tensor:
    """Memory for every `least`. On the CPU a thread keeps it from call to call: fresh pages cost as much as the search."""
    if like.device.type != "cpu":
        return like.new_empty(size)
    if size > len(getattr(_KEPT, "room", ())):
        _KEPT.room = like.new_empty(size)
    return cast(Tensor, _KEPT.room)


def _closed(x: Tensor, code: Code, room: Tensor) -> Tensor:
    """Fresh bits [T, N] of tail-biting paths near x [T, V, N]; room is written over as [T, R, N]."""
    steps, _, number = x.shape
    room = room[: steps * code.roots * number].view(steps, code.roots, number)
    warm = min(WARM // x.shape[1], steps // 2)
    around = torch.cat([x[steps - warm :], x[:warm]])
    room[0] = 0.0
    end = _forward(around, code, room).argmin(0)
    joint = _backward(around, code, room, end)[warm] >> code.fresh
    room[0] = torch.inf
    room[0].scatter_(0, joint[None], 0.0)
    ends = joint + torch.arange(code.branches, device=x.device)[:, None] * code.roots
    best = _forward(x, code, room).gather(0, ends).argmin(0, keepdim=True)
    return _backward(x, code, room, ends.gather(0, best)[0]) & code.branches - 1


def _forward(x: Tensor, code: Code, room: Tensor) -> Tensor:
    """Costs of all states after the last step [2**L, N]; room[t] becomes `least` before step t; room[0] is given."""
    steps, _, number = x.shape
    factors = torch.cat([code.table.square().sum(1, keepdim=True), code.table * -2, torch.ones_like(code.table[:, :1])], 1)
    points = torch.cat([torch.ones_like(x[:, :1]), x, x.square().sum(1, keepdim=True)], 1)
    cost = x.new_empty(len(code.table), number)
    for step in range(steps):
        if step:
            torch.amin(cost.view(code.branches, code.roots, number), 0, out=room[step])
        cost.view(code.roots, code.branches, number).copy_(room[step][:, None])
        cost.addmm_(factors, points[step])
    return cost


def _backward(x: Tensor, code: Code, room: Tensor, end: Tensor) -> Tensor:
    """The states [T, N] of the cheapest paths to the states `end` [N]."""
    jumps = torch.arange(code.branches, device=x.device)[:, None] * code.roots
    states = [end]
    for step in range(len(x) - 1, 0, -1):
        before = (states[-1] >> code.fresh) + jumps
        miss = code.table[before] - x[step - 1].t()
        costs = room[step - 1].gather(0, before >> code.fresh) + miss.square().sum(-1)
        states.append(before.gather(0, costs.argmin(0, keepdim=True))[0])
    return torch.stack(states[::-1])

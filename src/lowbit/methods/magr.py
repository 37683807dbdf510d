"""magr - weights with smaller extremes that give almost the same outputs.

In / Out  block, H = E[x xT] of each linear -> the weights changed in place, before a solver rounds them.
Idea      Least 1/2 |x (V - W)T|^2 + a |V|_inf for each row (or group): proximal gradient steps
          U = V - (V - W) H / L,  V = U - a' * projection of U / a' on the l1 ball,  L the largest eigenvalue of H.
          Where H has directions that hardly occur, extremes can shrink for free, and with them the step of the grid.
Source    MagR (2406.00800), algorithm 1; its code for the constants.
Defaults  alpha 1e-3 a row, 1e-4 in groups of 128; 200 and 150 steps.
Traps     Helps plain rounding and low bits; adds nothing after a turned basis, which spreads extremes anyway.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowbit.methods import Block, Method
from lowbit.statistics import Stats

POWER_STEPS = 30


@dataclass(frozen=True)
class MagR(Method):
    """alpha: weight of the extremes, 0 for the paper's. steps: of the descent, 0 for the paper's."""

    alpha: float = 0.0
    steps: int = 0

    needs: ClassVar[tuple[str, ...]] = ("second_moment",)

    def rewrite(self, block: Block, stats: dict[str, Stats]) -> None:
        for name, linear in block.linears.items():
            moment = stats[name].get("second_moment")
            if moment is None or not stats[name].tokens:
                continue
            group = block.formats[name].group[1] or linear.in_features
            row = group == linear.in_features
            weight = linear.weight.data.float()
            shrunk = shrink(weight, moment, group, self.alpha or (1e-3 if row else 1e-4), self.steps or (200 if row else 150))
            linear.weight.data = shrunk.to(linear.weight.dtype)


def shrink(weight: Tensor, moment: Tensor, group: int, alpha: float, steps: int) -> Tensor:
    """W [out, in] with smaller extremes in every `group` columns, for H [in, in]."""
    scaled = moment / _largest_eigenvalue(moment)
    found = weight.clone()
    for _ in range(steps):
        moved = (found - (found - weight) @ scaled).view(weight.shape[0], -1, group)
        found = (moved - alpha * onto_l1_ball(moved / alpha)).view_as(weight)
    return found


def onto_l1_ball(x: Tensor) -> Tensor:
    """The nearest point of |y|_1 <= 1 along the last axis."""
    size = x.abs()
    ordered = size.sort(-1, descending=True).values
    excess = ordered.cumsum(-1) - 1
    count = torch.arange(1, x.shape[-1] + 1, device=x.device)
    last = (ordered * count > excess).sum(-1, keepdim=True)
    threshold = excess.gather(-1, last - 1) / last
    return torch.where(size.sum(-1, keepdim=True) > 1, x.sign() * (size - threshold).clamp_min(0), x)


def _largest_eigenvalue(moment: Tensor) -> Tensor:
    vector = torch.ones_like(moment[0])
    for _ in range(POWER_STEPS):
        vector = moment @ vector
        vector = vector / vector.norm().clamp_min(1e-30)
    return (vector @ moment @ vector).clamp_min(1e-30) * 1.01

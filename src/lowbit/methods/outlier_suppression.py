"""outlier_suppression - the weights of norms move into what reads them: what the norms give is flatter without.

In / Out  a block -> the same function; norms that feed linears have weights 1. Nothing is rounded: follow it by a solver
          and `act`.
Idea      A norm's weight g makes some channels many times the others; x / g goes to the readers, W diag(g) takes it up.
Source    Outlier Suppression (2209.13325), section 4.1, gamma migration. Its second half, clipping by token, is act(clip=...).
Traps     Migration is all or nothing; os_plus and smoothquant choose how far. A channel whose weight is 0 keeps it.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from lowbit.methods import Block, Method
from lowbit.statistics import Stats
from lowbit.transforms import fold as folding


@dataclass(frozen=True)
class OutlierSuppression(Method):
    """Migration of the norms' weights."""

    needs: ClassVar[tuple[str, ...]] = ()
    needs_folds: ClassVar[bool] = True

    @torch.no_grad()
    def rewrite(self, block: Block, stats: dict[str, Stats]) -> None:
        """Move the weights of the norms whose readers are to be rounded."""
        for fold in folding.resolve(block.folds, [name for name, _ in block.module.named_modules()]):
            weight: Any = block.module.get_submodule(fold.source).weight
            if weight.dim() == 1 and any(name in block.linears for name in fold.targets):
                gain = weight.double() + fold.offset
                folding.apply(block.module, fold, torch.where(gain == 0, 1.0, gain), block.heads)

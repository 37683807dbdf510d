"""smoothquant - input channels that reach far are scaled down and their weights up, so that one scale a token suits them all.

In / Out  a block, the greatest |x| of its linears' inputs -> the block with other weights and the same function; nothing is
          rounded. It is for inputs that are rounded: follow it by a solver and `act`.
Idea      s = max|x|^alpha / max|w|^(1 - alpha) per channel, w over all readers: at 0.5 both sides are left with the same reach.
          x / s goes into the norm or linear that gives x, W s into its readers (transforms/fold.py).
Source    SmoothQuant (2211.10438), section 4, and smooth.py of its authors.
Defaults  alpha 0.5, as for OPT and BLOOM; the authors take 0.85 for Llama 2, 0.8 for Mistral.
Figures   lowbit-tiny, KL in milli-nats on two texts (4 windows, 8 of 512 tokens to calibrate), with gptq(int8-row) +
          act(int8-token) after it: 4.3 / 4.1 with alpha 0.5, 3.4 / 3.0 with 0.85, 3.5 / 3.0 with 0.95; without it 5.0 / 5.0.
          Books / docs / wikitext2 (6 windows, 32 to calibrate): 2.5 / 2.5 / 4.6 with 0.85, 3.6 / 4.1 / 6.1 without it.
          Int4 on both sides, clip 0.9: 1129 / 1104 without it, 691 / 575 with 0.85.
Traps     Only what norms give is scaled, as in the paper. With edges=all those between linears are too (v to o, up to down):
          needed where outliers stand there, else worse (4.6 / 4.2 with 0.85). Scales of a norm are taken as near as its 16-bit
          weight stays exact (fold.storable). Channels that were silent, and experts that saw no token, keep theirs.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lowbit.architectures import Fold
from lowbit.methods import Block, Method, Share
from lowbit.statistics import Stats
from lowbit.transforms import fold as folding

FLOOR = 1e-5
"""Least reach of weights and least scale, as in the source."""


@dataclass(frozen=True)
class SmoothQuant(Method):
    """alpha: share of the inputs' reach that moves into the weights, 0 to 1. edges: from norms, or from linears too."""

    alpha: Share = 0.5
    edges: Literal["norms", "all"] = "norms"

    needs: ClassVar[tuple[str, ...]] = ("max_magnitude",)
    needs_folds: ClassVar[bool] = True

    @torch.no_grad()
    def rewrite(self, block: Block, stats: dict[str, Stats]) -> None:
        """Scale along the folds of the block whose readers are to be rounded. Raises ArchitectureError when none is known."""
        folds = folding.known(block.folds, block.module, "smoothquant", block.name)
        for fold in folds:
            source: Any = block.module.get_submodule(fold.source).weight
            seen = [stats[name] for name in fold.targets if name in block.linears]
            norm = source.dim() == 1
            if (norm or self.edges == "all") and any(s.tokens for s in seen):
                reach = folding.gather(torch.stack([s["max_magnitude"] for s in seen]).amax(0), fold, block.heads)
                scales = self._scales(block, fold, reach)
                scales = folding.storable(source, scales, fold.offset) if norm else scales
                folding.apply(block.module, fold, scales, block.heads)

    def _scales(self, block: Block, fold: Fold, inputs: Tensor) -> Tensor:
        """The scales [channels] of one fold. inputs: greatest |x| [channels] that its readers get."""
        readers = [block.linears[name].weight for name in fold.targets if name in block.linears]
        weights = torch.stack([weight.abs().amax(0).float() for weight in readers]).amax(0).clamp_min(FLOOR)
        weights = folding.gather(weights, fold, block.heads)
        x = inputs.to(weights.device)
        return torch.where(x > 0, (x.pow(self.alpha) / weights.pow(1 - self.alpha)).clamp_min(FLOOR), 1.0)

"""duquant - inputs turned in blocks towards the outliers that they have, dealt out in zigzag, and turned again.

In / Out  a block and hidden states that enter it -> two small rotations and an order for each group of linears that share
          inputs, applied while running (the side `zigzag`); the block's function stays. The paper smooths first:
          smoothquant(alpha=0.6) + duquant + gptq(int4-row) + act(int4-token, clip=0.9).
Idea      Greedy: of B coordinates the one that reaches farthest is swapped with the first, which a matrix with a constant first
          row then spreads evenly; the others are turned at random. Repeated, and the product is kept at which the range was
          least. Channels are then sorted by their reach and dealt out to the blocks back and forth.
Source    DuQuant (2406.01721), section 3.2; algorithm 1.
Defaults  steps 256, blocks of 128, as in the paper.
Traps     One rotation serves all blocks of a linear, as in the paper. Nothing is folded: every linear turns its own inputs.
"""

import itertools
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowbit.architectures import shares
from lowbit.core.errors import CalibrationError
from lowbit.methods import Block, Count, Linear, Method, _inputs
from lowbit.sides import Parts, _hadamard
from lowbit.statistics import Stats
from lowbit.transforms import turning

SIDE = "zigzag"
LARGEST = 128


@dataclass(frozen=True)
class DuQuant(Method):
    """steps: of the greedy search in each rotation. seed: of its random turns."""

    steps: Count = 256
    seed: int = 0

    needs: ClassVar[tuple[str, ...]] = ("max_magnitude",)

    def around(self, linear: Linear) -> str:
        """The side of one linear."""
        return SIDE

    @torch.no_grad()
    def rewrite(self, block: Block, stats: dict[str, Stats]) -> None:
        """Choose rotations and orders, and leave them in block.parts."""
        if block.samples is None:
            raise CalibrationError(f"duquant: {block.name} has no hidden states to turn by. Give a calibration text.")
        groups = [shares([n for n in stage if n in block.linears]) for stage in block.stages]
        members = list(itertools.chain.from_iterable(group.values() for group in groups))
        seen = _inputs.sample(block, [names[0] for names in members])
        for names in members:
            if names[0] in seen:
                block.parts |= dict.fromkeys(names, self._parts(seen[names[0]]))

    def _parts(self, x: Tensor) -> Parts:
        """Both rotations and the order for inputs x [tokens, in]."""
        size = min(LARGEST, x.shape[1] & -x.shape[1])
        generator = torch.Generator().manual_seed(self.seed)
        first = self._greedy(x.reshape(-1, size), generator)
        x = (x.reshape(-1, size) @ first).view(x.shape)
        order = zigzag(x.abs().amax(0), size)
        second = self._greedy(x[:, order].reshape(-1, size), generator)
        stored = (first.to(torch.float16), order.to(torch.int32), second.to(torch.float16))
        return {f"zigzag_{n}": t.contiguous() for n, t in zip(("first", "order", "second"), stored, strict=True)}

    def _greedy(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The rotation [B, B] that leaves x [rows, B] with the least range."""
        size = x.shape[1]
        spread = _hadamard.apply(torch.eye(size, dtype=torch.float64), size)
        base = torch.block_diag(torch.ones(1, 1, dtype=torch.float64), turning.orthogonal(size - 1, generator)) @ spread
        base = base.to(x)
        found = best = torch.eye(size).to(x)
        least = float(x.amax() - x.amin())
        for _ in range(self.steps):
            farthest = int(x.abs().amax(0).argmax())
            swap = torch.arange(size, device=x.device)
            swap[0], swap[farthest] = farthest, 0
            x, found = x[:, swap] @ base, found[:, swap] @ base
            now = float(x.amax() - x.amin())
            if now < least:
                least, best = now, found
        return best


def zigzag(reach: Tensor, size: int) -> Tensor:
    """Channels [in] by falling reach, dealt out to blocks of `size` back and forth: which one stands where."""
    order = reach.argsort(descending=True, stable=True).view(size, -1)
    order[1::2] = order[1::2].flip(1)
    return order.T.reshape(-1)

"""saliency - what a squared error at a linear's outputs costs, token by token and for a few groups of outputs.

In / Out  gradients at the outputs [tokens, out] of the original -> [tokens, GROUPS], float32, windows in their order.
Idea      Mean over the outputs of a group of the squared gradient of the loss. Groups are the outputs in order, cut evenly.
Source    GuidedQuant (2505.07004), section 3: groups of output channels; 4 of them.
Traps     Only differences matter: the loss' scale drops out of every use.
"""

import torch
from torch import Tensor

NEEDS_GRADIENTS = True
LOSS = "likelihood"
GROUPS = 4


class Saliency:
    """The rows so far."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []

    def add(self, x: Tensor, gradient: Tensor) -> None:
        squares = gradient.float().square()
        self._rows.append(torch.stack([part.mean(1) for part in squares.tensor_split(GROUPS, 1)], 1))

    def result(self) -> Tensor:
        """[tokens, GROUPS]."""
        return torch.cat(self._rows) if self._rows else torch.zeros(0, GROUPS)


def collector(shape: tuple[int, int], device: torch.device) -> Saliency:
    return Saliency()

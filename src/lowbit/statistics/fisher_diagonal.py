"""fisher_diagonal - for every weight the mean over windows of its squared gradient.

In / Out  x [tokens, in] and gradients at the outputs [tokens, out], a window each -> [out, in], float32.
Idea      Near its minimum the loss grows by g^2 / 2 for a squared error of a weight (the empirical Fisher information). The
          gradient of a window is the sum over its tokens of g_out xT; windows, not tokens, are squared and summed.
Source    SqueezeLLM (2306.07629), section 4.1; its code takes batches of one window.
"""

import torch
from torch import Tensor

NEEDS_GRADIENTS = True
LOSS = "likelihood"


class FisherDiagonal:
    """The running sum."""

    def __init__(self, shape: tuple[int, int], device: torch.device) -> None:
        self._sum = torch.zeros(shape, device=device)
        self._windows = 0

    def add(self, x: Tensor, gradient: Tensor) -> None:
        self._windows += 1
        self._sum += (gradient.float().T @ x.float()).square()

    def result(self) -> Tensor:
        """[out, in]; zeros before the first window."""
        return self._sum / max(1, self._windows)


def collector(shape: tuple[int, int], device: torch.device) -> FisherDiagonal:
    return FisherDiagonal(shape, device)

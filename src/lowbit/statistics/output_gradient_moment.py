"""output_gradient_moment - E[G GT] of the gradients G of a matrix, one a window: how errors at two outputs count together.

In / Out  x [tokens, in] and gradients at the outputs [tokens, out], a window each -> [out, out], float32, symmetric.
Idea      The curvature of KL is near H_O x H_I (Kronecker). One step of power iteration from the identity gives
          H_O ~ E[G GT] [out, out], G = sum over the window's tokens of g_out xT. Tokens are drawn from the model's own
          predictions: then E[vec(G) vec(G)T] is the curvature itself.
Source    YAQA (2505.22988), sketch B.
"""

import torch
from torch import Tensor

NEEDS_GRADIENTS = True
LOSS = "sampled"


class OutputGradientMoment:
    """The running sum."""

    def __init__(self, size: int, device: torch.device) -> None:
        self._sum = torch.zeros(size, size, device=device)
        self._windows = 0

    def add(self, x: Tensor, gradient: Tensor) -> None:
        self._windows += 1
        whole = gradient.float().T @ x.float()
        self._sum += whole @ whole.T

    def result(self) -> Tensor:
        """[out, out]; zeros before the first window."""
        return self._sum / max(1, self._windows)


def collector(shape: tuple[int, int], device: torch.device) -> OutputGradientMoment:
    return OutputGradientMoment(shape[0], device)

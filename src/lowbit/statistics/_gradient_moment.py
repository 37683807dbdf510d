"""_gradient_moment - the running sum that both gradient moments are: G of each window, squared on one side."""

import torch
from torch import Tensor


class GradientMoment:
    """E[GT G], or of its transpose E[G GT] when `outputs`. size: of the result."""

    def __init__(self, size: int, device: torch.device, outputs: bool = False) -> None:
        self._sum = torch.zeros(size, size, device=device)
        self._windows = 0
        self._outputs = outputs

    def add(self, x: Tensor, gradient: Tensor) -> None:
        self._windows += 1
        whole = gradient.float().T @ x.float()
        self._sum += whole @ whole.T if self._outputs else whole.T @ whole

    def result(self) -> Tensor:
        """[size, size]; zeros before the first window."""
        return self._sum / max(1, self._windows)

"""mean_magnitude - mean |x| of every input channel.

In / Out  x [tokens, in] -> [in], float32.
Source    AWQ (2306.00978), section 3.2: what makes a channel salient.
Traps     Summed in float64: a million tokens in float32 lose the small channels.
"""

import torch
from torch import Tensor

JOINS = "mean"


class MeanMagnitude:
    """Sum of |x| per channel and the number of tokens."""

    def __init__(self, inputs: int, device: torch.device) -> None:
        self.tokens = 0
        self.total = torch.zeros(inputs, dtype=torch.float64, device=device)

    def add(self, x: Tensor, reference: Tensor | None) -> None:
        self.tokens += x.shape[0]
        self.total += x.abs().sum(0, dtype=torch.float64)

    def result(self) -> Tensor:
        """Mean |x| [in]; zeros when no token was seen."""
        return (self.total / max(self.tokens, 1)).float()


def collector(inputs: int, device: torch.device) -> MeanMagnitude:
    return MeanMagnitude(inputs, device)

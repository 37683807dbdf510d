"""max_magnitude - the greatest |x| of every input channel.

In / Out  x [tokens, in] -> [in], float32.
Source    SmoothQuant (2211.10438), section 4: what a channel asks of a scale that all of them share.
Traps     One token decides, the first of a text as a rule: more text changes it less than a mean, and never lowers it.
"""

import torch
from torch import Tensor

JOINS = "greatest"


class MaxMagnitude:
    """The running maximum of |x| per channel."""

    def __init__(self, inputs: int, device: torch.device) -> None:
        self.greatest = torch.zeros(inputs, device=device)

    def add(self, x: Tensor, reference: Tensor | None) -> None:
        if len(x):
            self.greatest = torch.maximum(self.greatest, x.abs().amax(0).float())

    def result(self) -> Tensor:
        """Greatest |x| [in]; zeros when no token was seen."""
        return self.greatest


def collector(inputs: int, device: torch.device) -> MaxMagnitude:
    return MaxMagnitude(inputs, device)

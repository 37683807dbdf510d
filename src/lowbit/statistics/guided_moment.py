"""guided_moment - for each group of outputs H = E[s x xT], tokens weighted by what their errors cost.

In / Out  x [tokens, in] of the stream that is being quantized, saliency s [tokens, groups] -> [groups, in, in] float32.
Idea      An error at a token on whose outputs the loss hardly depends is cheap. H_k uses the mean over the outputs of group k
          of the squared gradient there; divided by the mean of s, so that the scale is that of E[x xT].
Source    GuidedQuant (2505.07004), section 3.
"""

import torch
from torch import Tensor

WEIGHTED = "saliency"
TOKENS = 8192
"""Tokens turned to float32 at once."""


class GuidedMoment:
    """The running sums."""

    def __init__(self, inputs: int, device: torch.device) -> None:
        self._device = device
        self._inputs = inputs
        self._sums: list[Tensor] = []
        self._weights = torch.zeros(0)

    def add(self, x: Tensor, weights: Tensor) -> None:
        if not self._sums:
            self._sums = [torch.zeros(self._inputs, self._inputs, device=self._device) for _ in range(weights.shape[1])]
            self._weights = torch.zeros(weights.shape[1], device=self._device)
        self._weights += weights.float().sum(0)
        for part, weight in zip(x.split(TOKENS), weights.float().split(TOKENS), strict=True):
            part = part.float()
            for total, column in zip(self._sums, weight.T, strict=True):
                total.addmm_((part * column[:, None]).T, part)

    def result(self) -> Tensor:
        """[groups, in, in], symmetric; no group before the first token."""
        if not self._sums:
            return torch.zeros(0, self._inputs, self._inputs, device=self._device)
        found = torch.stack(self._sums) / self._weights.clamp_min(1e-30)[:, None, None]
        return (found + found.transpose(1, 2)) / 2


def collector(inputs: int, device: torch.device) -> GuidedMoment:
    return GuidedMoment(inputs, device)

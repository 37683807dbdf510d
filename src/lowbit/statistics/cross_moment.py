"""cross_moment - C = E[x_ref xT], full-precision inputs beside those that the quantized prefix gives.

In / Out  x and reference [tokens, in] of the same tokens -> C [in, in] float32, rows: reference, columns: x. Not symmetric.
Idea      With H = E[x xT], the weights that give the full-precision outputs from the inputs at run time are W C H^-1.
Source    GPTAQ (2504.02692), Qronos (2505.11695).
Traps     The two streams must be the same tokens in the same order; a token that is not finite must be left out of both.
"""

import torch
from torch import Tensor

from lowbit.core.errors import RequestError

NEEDS_REFERENCE = True
JOINS = "mean"
TOKENS = 8192
"""Tokens turned to float32 at once."""


class CrossMoment:
    """The running sum."""

    def __init__(self, inputs: int, device: torch.device) -> None:
        self._sum = torch.zeros(inputs, inputs, device=device)
        self._tokens = 0

    def add(self, x: Tensor, reference: Tensor | None) -> None:
        if reference is None or reference.shape != x.shape:
            got = "none" if reference is None else str(list(reference.shape))
            raise RequestError(
                f"cross_moment: inputs {list(x.shape)} need a reference of that shape, got {got}. Give both streams."
            )
        self._tokens += x.shape[0]
        for part, other in zip(x.split(TOKENS), reference.split(TOKENS), strict=True):
            self._sum.addmm_(other.float().T, part.float())

    def result(self) -> Tensor:
        """C [in, in]; zeros before the first token."""
        return self._sum / max(1, self._tokens)


def collector(inputs: int, device: torch.device) -> CrossMoment:
    return CrossMoment(inputs, device)

"""target - the weights that give the full-precision outputs from the inputs that the quantized prefix gives.

In / Out  W [out, in], H = E[x xT], C = E[x_ref xT] -> W* [out, in].
Idea      E|x_ref WT - x QT|^2 = tr((Q - W*) H (Q - W*)T) + constant with W* = W C H^-1. So the mismatch of the inputs needs no
          solver of its own: any solver rounds W* instead of W. A ridge keeps W* near W where H knows little:
          W* = W (C + r I) (H + r I)^-1, r = ridge * mean(diag H); alpha goes from W (0) to W* (1).
Source    The objective: GPTAQ (2504.02692), Qronos (2505.11695). Both reach it step by step; this is its closed form.
Defaults  ridge 0.01. Methods choose alpha: one layer alone wants 1, a whole model less (methods/gptaq.py).
          Few tokens make W* noise: with t tokens an input alpha is taken times t / (t + 8); with fewer than one it is left out.
Traps     A dead input must not change: the difference C - H is taken before its diagonal is lifted.
          C is not symmetric: rows are the reference, columns the inputs at run time.
"""

import torch
from torch import Tensor

from lowbit.solvers.damping import cholesky, revived

FEW = 8
"""Tokens an input at which half of the correction is trusted."""


def corrected(weight: Tensor, moment: Tensor, cross: Tensor, ridge: float = 0.01, alpha: float = 1.0) -> Tensor:
    """W + alpha (W* - W), W unchanged where H + ridge has no factor. Cost in^3 / 3 + 2 out in^2."""
    factor, _, _ = cholesky(revived(moment), ridge)
    if factor is None:
        return weight
    return torch.add(weight, torch.cholesky_solve((weight @ (cross - moment)).T, factor).T, alpha=alpha)


def trusted(weight: Tensor, moment: Tensor, cross: Tensor, tokens: int, ridge: float, alpha: float) -> Tensor:
    """As `corrected`, as far as `tokens` of text can be trusted; with fewer than inputs, `weight` itself."""
    if tokens < weight.shape[1]:
        return weight
    return corrected(weight, moment, cross, ridge, alpha * tokens / (tokens + FEW * weight.shape[1]))

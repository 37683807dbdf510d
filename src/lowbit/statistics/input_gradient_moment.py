"""input_gradient_moment - E[GT G] of the gradients G of a matrix, one a window: how errors at two inputs count together.

In / Out  x [tokens, in] and gradients at the outputs [tokens, out], a window each -> [in, in], float32, symmetric.
Idea      The curvature of KL is near H_O x H_I (Kronecker). One step of power iteration from the identity gives
          H_I ~ E[GT G] [in, in], G = sum over the window's tokens of g_out xT. Tokens are drawn from the model's own
          predictions: then E[vec(G) vec(G)T] is the curvature itself.
Source    YAQA (2505.22988), sketch B.
"""

import torch

from lowbit.statistics._gradient_moment import GradientMoment

NEEDS_GRADIENTS = True
LOSS = "sampled"


def collector(shape: tuple[int, int], device: torch.device) -> GradientMoment:
    return GradientMoment(shape[1], device)

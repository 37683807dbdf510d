"""low_rank - the two thin factors that make up best for the error of a rounded matrix, under a metric of the inputs.

In / Out  error D = W - Q [out, in], root S [in, in] or [in] of the metric S ST -> B [out, r], A [r, in].
Idea      Least |(D - B A) S|: the r largest singular values of D S = U s VT give B = U s^(1/2), A = s^(1/2) VT S^-1. With
          S ST = H that is least error of the outputs; any root of H gives the same product, so Cholesky's will do.
Source    LQER (2402.02446), QERA (2410.06040) theorem 1, EoRA (2410.21271).
"""

import torch
from torch import Tensor


def factors(error: Tensor, root: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """B [out, r] and A [r, in]. root: lower triangular [in, in], or a diagonal [in]."""
    scaled = error * root if root.dim() == 1 else error @ root
    u, s, vh = torch.linalg.svd(scaled.float(), full_matrices=False)
    half = s[:rank].sqrt()
    right = half[:, None] * vh[:rank]
    if root.dim() == 1:
        return u[:, :rank] * half, right / root
    return u[:, :rank] * half, torch.linalg.solve_triangular(root, right, upper=False, left=False)

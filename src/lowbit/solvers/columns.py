"""columns - a matrix whose columns O stay beside the grid: all others are rounded so that O can make up for them best.

In / Out  W [out, in], Problem, format of the grid, columns O [n] -> Quantized of the rest (zeros in O), K [out, n].
Idea      For any rounding with errors E_N the best K = W_O + E_N H_NO H_OO^-1, and what is then lost is tr(E_N S E_N^T) with
          S = H_NN - H_NO H_OO^-1 H_ON: the rest is solved against S, as any other matrix is against H.
Source    GPTQ with outlier columns last, QUIK (2310.09259), section 3.2: there feedback reaches K by and by; this is its end.
"""

import torch
from torch import Tensor

from lowbit.formats import Format, Quantized
from lowbit.solvers import grid
from lowbit.solvers.grid import Problem


def solve(
    weight: Tensor, given: Problem, format: Format, columns: Tensor, damp: float = 0.01, sweeps: int = 3
) -> tuple[Quantized, Tensor]:
    """Round all but `columns`. damp: added to H_OO and S, relative to the mean of the diagonal."""
    moment = given.moment
    kept = moment[columns]
    lift = damp * moment.diagonal().mean()
    inner = kept[:, columns] + lift * torch.eye(len(columns), device=moment.device)
    gain = torch.linalg.solve(inner.double(), kept.double()).to(moment.dtype)
    rest = moment - kept.T @ gain
    rest = (rest + rest.T) / 2
    rest[columns], rest[:, columns] = 0.0, 0.0
    # where nothing is to be rounded a diagonal of the mean keeps the factor sound and costs nothing: zeros stay zeros
    least = moment.diagonal().mean()
    rest.diagonal()[columns] = least
    rest.diagonal().clamp_min_(1e-6 * float(least))
    plain = weight.float().index_fill(1, columns, 0.0)
    found = grid.solve(plain, Problem(rest, dict(given.report)), format, damp=damp, sweeps=sweeps)
    error = (plain - found.decode()).index_fill(1, columns, 0.0)
    return found, weight[:, columns].float() + error @ gain.T

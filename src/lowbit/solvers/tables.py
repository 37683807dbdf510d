"""tables - for codes that stay, the table of each row that loses least in H.

In / Out  W [out, in], H [in, in], a grid with the part "table" [out, K], codes [out, in], values -> better grid, its values.
Idea      A row's values are P t, P [in, K] the codes as zeros and ones: tr(E H ET) is a parabola in t, least where
          (PT H P) t = PT H w. Solved for the change of t, so that rounding cancels little. A row keeps its table where the
          stored one would not be better: values are float16.
Source    LNQ, of GuidedQuant (2505.07004).
Defaults  ridge 1e-7 of the mean of the diagonal (GuidedQuant's code).
Traps     Entries without codes stay where they are; the table need not stay sorted.
"""

import torch
from torch import Tensor

from lowbit.formats import Grid, shelf
from lowbit.solvers import descent

RIDGE = 1e-7
ROWS = 1024


def refit(weight: Tensor, moment: Tensor, grid: Grid, codes: Tensor, values: Tensor) -> tuple[Grid, Tensor]:
    """The grid with the best tables, and its values; of formats without tables: the best scales. Cost K out in^2."""
    if "table" not in grid.parts:
        return descent.refit(weight, moment, grid, codes, values)
    old = grid.parts["table"].float()
    parts = [slice(a, a + ROWS) for a in range(0, weight.shape[0], ROWS)]
    wanted = torch.cat([_solved(weight[p] - values[p], moment, codes[p].long(), old[p]) for p in parts])
    table = shelf.get(grid.format.rule).stored(wanted)
    tried = table.float().gather(1, codes.long())
    better = _losses(weight - tried, moment) < _losses(weight - values, moment)
    kept = torch.where(better[:, None], table, grid.parts["table"])
    return Grid(grid.format, {**grid.parts, "table": kept}, grid.shape), torch.where(better[:, None], tried, values)


def _solved(error: Tensor, moment: Tensor, codes: Tensor, table: Tensor) -> Tensor:
    """The best tables [rows, K] for errors [rows, in] and codes."""
    size = table.shape[1]
    gain = torch.zeros_like(table).scatter_add_(1, codes, error @ moment)
    curve = torch.stack([torch.zeros_like(table).scatter_add_(1, codes, (codes == k).float() @ moment) for k in range(size)], 1)
    diagonal = curve.diagonal(dim1=1, dim2=2)
    ridge = RIDGE * diagonal.mean(1, keepdim=True)
    curve = curve.double() + torch.diag_embed(torch.where(diagonal > 0, ridge, diagonal.mean(1, keepdim=True) + 1e-30)).double()
    move, _ = torch.linalg.solve_ex(curve, gain.double()[..., None])
    found: Tensor = table + move[..., 0].nan_to_num(0, 0, 0).float()
    return found


def _losses(error: Tensor, moment: Tensor) -> Tensor:
    """e H eT of every row."""
    return ((error @ moment) * error).sum(1, dtype=torch.float64)

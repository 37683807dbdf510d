"""grouped - a matrix whose rows are rounded against different second moments.

In / Out  W [out, in], moments [groups, in, in] of rows in order, cut evenly, format -> Quantized.
Idea      Rows that share no scale and no code are independent: each group of them is solved alone (solvers/grid.py). A format
          that ties rows together (a turned basis of outputs, tiles, a scale for the matrix) gets the mean of the moments: after
          a turn every row is a sum of all.
Source    GuidedQuant (2505.07004), section 3.2.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lowbit.formats import Format, Quantized
from lowbit.solvers import ldl

Solve = Callable[[Tensor, Tensor, slice], Quantized]
"""(weight of some rows, their moment, which rows) -> those rows rounded."""


def apart(format: Format, shape: tuple[int, int]) -> bool:
    """Whether the rows of a matrix of `shape` can be rounded one by one."""
    if format.sides or not format.group[0] == format.step[0] == 1 or format.extra_bits:
        return False
    parts = format.fit(torch.ones(2, shape[1]), search=False).parts
    return all(part.shape[0] == 2 for part in parts.values())


def solve(weight: Tensor, moments: Tensor, format: Format, one: Solve) -> Quantized:
    """Round `weight` by `one`, group of rows after group. Report: that of the first, "error" over all of them."""
    if len(moments) == 1 or not apart(format, (weight.shape[0], weight.shape[1])):
        return one(weight, moments.mean(0), slice(0, weight.shape[0]))
    starts = [rows[0] for rows in torch.arange(weight.shape[0]).tensor_split(len(moments)) if len(rows)]
    ends = [*starts[1:], torch.tensor(weight.shape[0])]
    found, lost, power = list[Quantized](), 0.0, 0.0
    for start, end, moment in zip(starts, ends, moments, strict=False):
        rows = slice(int(start), int(end))
        found.append(one(weight[rows], moment, rows))
        whole = ldl.loss(weight[rows].float(), moment)
        power, lost = power + whole, lost + float(found[-1].report["error"]) * whole
    codes, parts = torch.cat([q.codes for q in found]), {n: torch.cat([q.parts[n] for q in found]) for n in found[0].parts}
    shape = (weight.shape[0], weight.shape[1])
    return Quantized(format, codes, parts, shape, {**found[0].report, "error": lost / max(power, 1e-300)})

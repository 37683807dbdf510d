"""stacked - matrices of one input rounded as one, rows under rows.

In / Out  several W [out, in] of one H, what rounds a matrix in a format whose rows share nothing -> each of them rounded.
Idea      Feedback and descent go from column to column; what a column costs in launches and waiting is the same for any number
          of rows. Stacked, query, key and value take the time of one of them, gate and up likewise: of the 304 panels of a
          block of Llama-3-8B 208 are left, on every one of several GPUs that share the rows.
Traps     Not for CPUs: they wait for no launch, and the stacked copy takes memory. Not where a statistic belongs to one matrix.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lowbit.formats import Format, Quantized
from lowbit.solvers import rows


def possible(format: Format) -> bool:
    """Whether matrices in a format may be cut from the rows of one."""
    return not format.sides and rows.separable(format)


def solve(weights: Sequence[Tensor], one: Callable[[Tensor], Quantized]) -> list[Quantized]:
    """The matrices, rounded by `one` as rows of a single one. Report: that of all, "error" the own one if rows tell theirs."""
    whole = one(torch.cat(list(weights)))
    found, start = [], 0
    for weight in weights:
        own = slice(start, start + len(weight))
        start, report, losses = own.stop, dict(whole.report), None
        if whole.losses is not None:
            losses = whole.losses[own]
            lost, had = losses.sum(0).tolist()
            report["error"] = lost / max(had, 1e-300)
        parts = {name: part[own].contiguous() for name, part in whole.parts.items()}
        shape = (len(weight), weight.shape[1])
        found.append(Quantized(whole.format, whole.codes[own].contiguous(), parts, shape, report, losses))
    return found

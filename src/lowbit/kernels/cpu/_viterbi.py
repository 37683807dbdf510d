"""_viterbi - the search of trellis codes in C++ (source/viterbi.cpp): a sequence a thread, costs in the second cache.

In / Out  values [N, T, V] in units of the code -> fresh bits uint8 [N, T], as lowbit.dtypes._viterbi.search gives them.
Traps     Costs are sums of squares, there they are products: paths may differ where two are equally good to 1e-6.
"""

import torch
from torch import Tensor

from lowbit.dtypes import _viterbi as law
from lowbit.dtypes._trellis import Trellis
from lowbit.kernels.cpu import _build

LANES = 16


def refusal(element: Trellis) -> str:
    """Why the C++ does not search for an element, or ""."""
    if element.width > 2 or not 1 <= element.bits <= 8 or element.length - element.bits < 4:
        return f"{element.name} has no {LANES} roots, or more than 8 fresh bits or 2 values a step"
    return _build.missing()


def search(values: Tensor, element: Trellis) -> Tensor:
    """The fresh bits of near closed paths [N, T]."""
    number, steps, width = values.shape
    x, table = values.float().contiguous(), element._code(values.device).table.t().contiguous()
    found = torch.empty(number, steps, dtype=torch.uint8)
    run = _build.function("lowbit_viterbi", "pppiiiiiii")
    threads = max(1, min(torch.get_num_threads(), number))
    shape = (element.length, element.bits, width, number, steps, min(law.WARM // width, steps // 2), threads)
    run(_build.address(x), _build.address(table), _build.address(found), *shape)
    return found

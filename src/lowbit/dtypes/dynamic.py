"""dynamic - 8-bit dynamic numbers (dynamic8): seven decades below 1, the finer the nearer to 1.

In / Out  values in -1 .. 1 -> code i in uint8 -> the i-th value.
Idea      For the decade 10**-k .. 10**(1-k), k = 1 .. 7, 2**(7-k) bins of equal width; each value is the middle of its bin;
          with both signs, and 0 and 1. It stores the scales of double quantization (formats/double.py).
Source    8-Bit Approximations for Parallelism in Deep Learning (1511.04561); bitsandbytes `create_dynamic_map`.
Figures   Equal to bitsandbytes' map code by code (computed in float32 for that).
Traps     There is a 1 but no -1. `dynamic7` and others do not exist.
"""

import torch

from lowbit.core.errors import FormatError
from lowbit.dtypes._table import Table

EXAMPLES = ("dynamic8",)


def element(number: str) -> Table:
    if number != "8":
        raise FormatError(f"dynamic{number}: dynamic numbers have 8 bits. Use dynamic8.")
    values = [0.0, 1.0]
    for k in range(1, 8):
        edges = torch.linspace(0.1, 1, 2 ** (7 - k) + 1)
        middles = (10.0 ** (1 - k) * ((edges[:-1] + edges[1:]) / 2)).tolist()
        values += middles + [-value for value in middles]
    return Table("dynamic8", tuple(sorted(values)))

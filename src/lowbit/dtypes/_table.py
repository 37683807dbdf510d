"""_table - elements that are a short ascending list of values: code i means the i-th value.

Idea      The nearest value is found by bisection over the midpoints. A midpoint is exact in float64; the threshold is the
          greatest float32 that still belongs to the lower code, so that ties go to the even code and nothing is off by a bit.
Traps     Values are compared as float32. NaN has no code (it gets the last one): `Format.fit` refuses it before.
"""

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Table:
    """The element called `name` with the given ascending values."""

    name: str
    values: tuple[float, ...]
    step = (1, 1, 1)

    @property
    def bits(self) -> float:
        return math.log2(len(self.values))

    @property
    def codes(self) -> int:
        return len(self.values)

    @property
    def minimum(self) -> float:
        return self.values[0]

    @property
    def maximum(self) -> float:
        return self.values[-1]

    def encode(self, values: Tensor) -> Tensor:
        return self._nearest(values).to(torch.uint8)

    def decode(self, codes: Tensor) -> Tensor:
        return look_up(on_device(self.values, codes.device), codes)

    def round(self, values: Tensor) -> Tensor:
        return look_up(on_device(self.values, values.device), self._nearest(values))

    def _nearest(self, values: Tensor) -> Tensor:
        """Index of the nearest value, int32."""
        return torch.bucketize(values.float().contiguous(), _thresholds(self.values, values.device), out_int32=True)


def look_up(table: Tensor, index: Tensor) -> Tensor:
    """table[index] for an index of any shape and integer type."""
    return table.index_select(0, index.reshape(-1).int()).view(index.shape)


@cache
def on_device(values: tuple[float, ...], device: torch.device) -> Tensor:
    """The values as one float32 tensor, made once per device."""
    return torch.tensor(values, dtype=torch.float32, device=device)


@cache
def _thresholds(values: tuple[float, ...], device: torch.device) -> Tensor:
    """For each pair of neighbours the greatest float32 that rounds to the lower one."""
    exact = torch.tensor(values, dtype=torch.float32).double()
    middle = (exact[:-1] + exact[1:]) / 2
    nearest = middle.float()
    odd = torch.arange(len(nearest)) % 2 == 1
    above = (nearest.double() > middle) | ((nearest.double() == middle) & odd)
    return torch.where(above, torch.nextafter(nearest, torch.tensor(-math.inf)), nearest).to(device)

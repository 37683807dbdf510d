"""panels - the columns of a panel rounded one after the other by one kernel, where the device has it.

In / Out  a codec of single columns, a panel of the transposed matrix [columns, out] -> its codes and values.
Idea      A loop over columns in torch is half a dozen launches a column; the kernel holds a few rows of a panel in registers
          and goes through its columns by itself. It knows the codec as data (`Codec.scalars`); what is no grid of numbers
          (vectors, tiles, codecs that watch or keep single weights) stays with the loop, and so does every CPU.
Traps     Codes equal the loop's up to the order of sums: a value in the middle between two levels may go to the other one.
"""

import torch
from torch import Tensor

from lowbit.formats._scalars import Scalars
from lowbit.kernels import triton
from lowbit.solvers.codec import Codec


class Kernel:
    """Rounds panels of one matrix. scalars: its codec as data."""

    def __init__(self, scalars: Scalars) -> None:
        self._scalars = scalars

    def groups(self, columns: Tensor) -> Tensor:
        """The group of each column, given by its place in the matrix; int32."""
        each = self._scalars.columns
        return (columns // each if each else torch.zeros_like(columns)).int()

    def round(self, base: Tensor, moved: Tensor, pull: Tensor, group: Tensor, up: bool = False) -> tuple[Tensor, Tensor]:
        """See lowbit.kernels.triton.panel. group: as `groups` gives it, for the columns of the panel."""
        told = self._scalars
        return triton.panel(base, moved, pull, group, told.scale, told.zero, told.low, told.high, told.levels, up)

    def codes(self, found: Tensor) -> Tensor:
        """What the codec calls codes [out, in], for what `round` gave."""
        return self._scalars.codes(found)


def kernel(weight: Tensor, codec: Codec) -> Kernel | None:
    """The kernel that rounds columns of a matrix on this device, or None."""
    scalars = getattr(codec, "scalars", None)
    return None if scalars is None or triton.panel_refusal(weight) else Kernel(scalars())

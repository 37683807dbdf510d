"""panels - the columns of a panel rounded one after the other by one kernel, where the device has it.

In / Out  a codec of single columns, the transposed matrix [in, out], a panel of its rows -> their codes, values and errors.
Idea      A loop over columns in torch is half a dozen launches a column; the kernel holds the rows of a panel in registers
          and goes through its columns by itself. It knows the codec as data (`Codec.scalars`); what is no grid of numbers
          (vectors, tiles, codecs that watch or keep single weights) stays with the loop, and so does every CPU.
          A product for one panel has too few rows to fill a GPU: FAR columns get what all others add to them by one product,
          and what they add to each other by small ones.
          Two kernels: one thread a row and one launch a panel (cuda/panel.cu), or Triton's, between some ten launches.
Traps     Codes equal the loop's up to the order of sums: a value in the middle between two levels may go to the other one.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.formats._scalars import Scalars
from lowbit.kernels import triton
from lowbit.kernels.cuda import _panel
from lowbit.solvers.codec import Codec

PANEL, FAR = 128, 512
"""Columns of a panel; of the panels that get what other columns add to them by one product."""


def parts(stop: int, size: int, start: int = 0) -> Iterator[tuple[int, int]]:
    """start .. stop in parts of `size`."""
    return ((a, min(a + size, stop)) for a in range(start, stop, size))


@dataclass
class Found:
    """What is known of a transposed matrix [in, out] so far: codes as the kernel gives them, values, errors."""

    codes: Tensor
    values: Tensor
    errors: Tensor


class Kernel:
    """Rounds panels of one matrix. scalars: its codec as data. columns [in]: the input at each place, an order of rounding."""

    def __init__(self, scalars: Scalars, columns: Tensor, fused: bool) -> None:
        self._scalars = scalars
        self._columns = columns
        each = scalars.columns
        self._groups = (columns // each if each else torch.zeros_like(columns)).int()
        self._fused = fused

    def round(
        self, base: Tensor, moved: Tensor, pull: Tensor, rows: tuple[int, int], found: Found, changes: Tensor | None = None
    ) -> None:
        """Round rows a .. b of base [in, out] into `found`, whose codes stand in the matrix' own order.

        Feedback, the last row first: moved [b - a, out] is what to round before the errors of these rows are known, pull
        [in, in] the factor L. With changes, coordinate descent, the first row first: moved is (E H) of these rows, pull is H;
        base may be found.values; changes [b - a, out] gets what is added to the errors.
        """
        told, here = self._scalars, slice(*rows)
        near = pull[here, here]
        if self._fused:
            to, ends = (found.codes, found.values, found.errors), (told.low, told.high)
            grid = (self._groups, self._columns, told.scale, told.zero, ends, told.levels)
            _panel.rounded(base, moved, near, rows[0], *grid, to, changes)
            return
        if changes is not None:
            diagonal = near.diagonal()
            moved, near = torch.addcdiv(base[here], moved, diagonal[:, None]), near / diagonal
        group, ends = self._groups[here], (told.low, told.high)
        codes, values = triton.panel(
            base[here], moved, near, group, told.scale, told.zero, *ends, told.levels, changes is not None
        )
        errors = base[here] - values
        found.codes[self._columns[here]] = codes
        found.errors[here] = errors if changes is None else found.errors[here] + errors
        if changes is not None:
            changes.copy_(errors)
        found.values[here] = values

    def codes(self, found: Tensor) -> Tensor:
        """What the codec calls codes [out, in], for the transposed codes of all panels."""
        return self._scalars.codes(found.T.contiguous())


def kernel(weight: Tensor, codec: Codec, columns: Tensor | None = None) -> Kernel | None:
    """The kernel that rounds columns of a matrix on this device, or None. columns: in which order (default: their own)."""
    scalars = getattr(codec, "scalars", None)
    fused = not _panel.refusal(weight)
    if scalars is None or (not fused and triton.panel_refusal(weight)):
        return None
    own = torch.arange(weight.shape[1], device=weight.device) if columns is None else columns
    return Kernel(scalars(), own, fused)

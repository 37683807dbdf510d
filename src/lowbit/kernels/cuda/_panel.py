"""_panel - the columns of one panel of a solver, rounded one after the other by one launch of panel.cu.

In / Out  transposed matrices [in, out] float32 -> codes, values and errors of the rows a .. b, in place.
Idea      A thread has a row, and all that belongs to it: what is to be rounded in registers, errors in shared memory; no lane
          waits for another one. What stands around the rounding (the difference, the errors, codes in their places) is done
          on the way out, so that a panel is one matrix product and one launch.
Source    GPTQ (2210.17323), the loop over columns; LDL order: QuIP (2307.13304); descent: QuantEase (2309.01885).
Floor     128 columns one after the other at some 100 cycles each: 8 us on an H200 for any number of rows up to 30,000.
Traps     What two threads write lies apart; a thread whose row is beyond the matrix reads the last one and writes nothing.
"""

import torch
from torch import Tensor

from lowbit.kernels.cuda import _build, _product

COLUMNS = 128
"""Of a panel at most."""
THREADS = 64


def refusal(weight: Tensor) -> str:
    """Why panels of `weight` cannot be rounded by this kernel, or ""."""
    if weight.device.type != "cuda" or torch.version.hip is not None:
        return f"device {weight.device.type} is not an NVIDIA GPU"
    return _build.missing()


def rounded(
    base: Tensor, moved: Tensor, pull: Tensor, first: int, group: Tensor, place: Tensor, scale: Tensor, zero: Tensor | None,
    ends: tuple[float, float], levels: Tensor | None, to: tuple[Tensor, Tensor, Tensor], changes: Tensor | None,
) -> None:  # fmt: skip
    """Round n rows, at most COLUMNS, of the transposed matrix `base` [in, out], from row `first` on.

    moved [n, out]: what is to be rounded before the panel's own errors are known; for descent (E H) of these rows instead. pull
    [n, n]: of L, H = L D LT; for descent of H itself. group int32, place int64 [in]: rows of scale and zero [G, out], and of
    codes. ends, levels: as of lowbit.kernels.triton.panel. to: codes, values, errors [in, out]. changes [n, out]: for descent,
    gets what is added to the errors.
    """
    pull = pull if pull.stride(1) == 1 else pull.contiguous()  # a factor lies column by column
    n, out, start = len(pull), base.shape[1], 4 * first * base.shape[1]
    count = 0 if levels is None else len(levels)
    macros = (
        ("HALF", 0), ("NT", 0), ("UP", int(changes is not None)), ("ZERO", int(zero is not None)), ("LEVELS", count),
        ("BY_ROW", int(levels is not None and levels.dim() == 2)), ("DEPTH", max(count - 1, 0).bit_length()),
        ("THREADS", THREADS),
    )  # fmt: skip
    codes, values, errors = to
    address = _product.address
    arguments = (
        _at(base, start), address(moved), address(pull), _at(group, 4 * first), _at(place, 8 * first), address(scale),
        address(zero), address(levels), address(codes), _at(values, start), _at(errors, start), address(changes), out, n,
        pull.stride(0), *map(_build.float_bits, ends),
    )  # fmt: skip
    _build.kernel("panel.cu", "rounded", macros, base.device.index or 0).launch((-(-out // THREADS), 1, 1), THREADS, arguments)


def _at(tensor: Tensor, offset: int) -> _build.Pointer:
    """The address `offset` bytes behind the start of a contiguous tensor."""
    return _build.Pointer(tensor.data_ptr() + offset)

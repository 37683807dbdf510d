"""_replay - the calls of one token, written down once and made again by one call of C++: what a CUDA graph is on a GPU.

Idea      Kernels of this folder are calls with addresses and numbers. While one token runs, each is made as ever and written
          down; the memory that they were given stays theirs. Python is slow between layers that stream through the caches.
Traps     Whatever else touches data in between would be left out: an operation of torch that is neither a view nor empty
          memory, or a call whose arguments do not outlast it, and nothing is written down.
"""

import ctypes
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lowbit.kernels.cpu import _build

EMPTY = {"empty", "empty_like", "empty_strided", "new_empty"}
LASTING = {"integers", "trellis", "decoded", "norm", "gate", "row", "plain", "shift", "step_attention"}
"""Functions whose arguments are addresses of tensors, and numbers."""
NUMBERS, REALS = 24, 2


class Call(ctypes.Structure):
    """As replay.cpp has it."""

    _fields_ = (("run", ctypes.c_void_p), ("numbers", ctypes.c_int64 * NUMBERS), ("reals", ctypes.c_double * REALS))


class Writing(TorchDispatchMode):
    """Writes down the calls that are made. kept: tensors that they use. other: what else was done."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []
        self.kept: list[Tensor] = []
        self.other: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not (func.is_view or func.overloadpacket.__name__ in EMPTY):
            self.other.append(str(func))
        return func(*args, **(kwargs or {}))

    def call(self, name: str, arguments: str, found: Callable[..., None], *given: Any) -> None:
        """Make a call and write it down."""
        found(*given)
        if name.removeprefix("lowbit_") not in LASTING:
            self.other.append(name)
            return
        numbers = [int(v or 0) for v, kind in zip(given, arguments, strict=True) if kind != "d"]
        reals = [float(v) for v, kind in zip(given, arguments, strict=True) if kind == "d"]
        numbers += [0] * (NUMBERS - len(numbers))
        reals += [0.0] * (REALS - len(reals))
        where = ctypes.cast(found, ctypes.c_void_p)  # type: ignore[arg-type]
        self.calls.append(Call(where, (ctypes.c_int64 * NUMBERS)(*numbers), (ctypes.c_double * REALS)(*reals)))


def recorded(one: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None] | None]:
    """What `one` gives, and what does the same again on the same memory; None where it cannot be written down."""
    writing = Writing()
    with _build.writing(writing), writing:
        found = one()
    if writing.other:
        return found, None
    calls, run = (Call * len(writing.calls))(*writing.calls), _build.function("lowbit_replay", "pi")

    def again(kept: list[Tensor] = writing.kept) -> None:
        run(ctypes.addressof(calls), len(calls))

    return found, again

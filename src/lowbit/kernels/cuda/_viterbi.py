"""_viterbi - the search of trellis codes on an NVIDIA GPU: one block of viterbi.cu a sequence.

In / Out  values [N, T, V] in units of the code -> fresh bits uint8 [N, T], as lowbit.dtypes._viterbi.search gives them.
Idea      Two passes as there: around the joint with free ends, then the whole ring with the joint given. A step costs 65536
          states of three and a half instructions each, two more that several sequences share; back pointers are a byte a root
          and leave for global memory.
Floor     132 processors x 128 lanes x 1.9 GHz / (65536 x 4 instructions x 1.75 passes) = 70 million weights a second (H200);
          half of them go through the 64 lanes for whole numbers.
Traps     Values are the rule's before they are rounded to half precision, costs lose their lowest bits to the winner's number:
          paths may differ from the CPU's where two are equally good to 1e-6.
"""

import torch
from torch import Tensor

from lowbit.dtypes._mul1 import mul1, mul2
from lowbit.dtypes._trellis import Trellis
from lowbit.dtypes._viterbi import WARM
from lowbit.kernels.cuda import _build
from lowbit.kernels.cuda._build import Pointer

MEMORY = 2 << 30
"""Bytes of back pointers at once."""
MOST = 4
"""Sequences that a block takes at most; their costs fit beside each other up to 32768 roots."""
SCALE, SHIFT = 0.00676727294921875, -10.3828125 + 1024 * 0.00676727294921875
"""value = bytes * SCALE + SHIFT: the numbers fp16 0x1EEE and 0xC931 of the rule."""


def refusal(element: Trellis, device: torch.device) -> str:
    """Why the kernel does not search for an element there, or ""."""
    if _build.missing():
        return _build.missing()
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "the device is older than sm_80"
    return "" if element.rule in (mul1, mul2) else f"{element.name} has another rule than mul1 and mul2"


def search(values: Tensor, element: Trellis) -> Tensor:
    """The fresh bits of near closed paths [N, T]."""
    most = max(1, MEMORY // (values.shape[1] << (element.length - element.bits)))
    return torch.cat([_closed(part.float().contiguous(), element) for part in values.split(most)])


def _closed(x: Tensor, element: Trellis) -> Tensor:
    """Fresh bits [N, T] of rings near x [N, T, V]."""
    steps = x.shape[1]
    warm = min(WARM // x.shape[2], steps // 2)
    around = torch.cat([x[:, steps - warm :], x[:, :warm]], 1).contiguous()
    free = torch.full((len(x),), -1, dtype=torch.int32, device=x.device)
    joint = _pass(around, element, free, None, warm)[1]
    return _pass(x, element, joint, joint, 0)[0]


def _pass(x: Tensor, element: Trellis, start: Tensor, end: Tensor | None, at: int) -> tuple[Tensor, Tensor]:
    """The codes [N, T] of the cheapest path from the roots `start` to `end` (None: any), and its root before step `at`."""
    number, steps, width = x.shape
    roots = 1 << (element.length - element.bits)
    threads, together, shared = block(roots)
    macros = (
        ("HALF", 0),
        ("NT", 0),
        ("FRESH", element.bits),
        ("VALUES", width),
        ("LENGTH", element.length),
        ("THREADS", threads),
        ("TOGETHER", together),
    )
    back = torch.empty(number, steps, roots, dtype=torch.uint8, device=x.device)
    found, root = torch.empty_like(start), torch.empty_like(start)
    codes = torch.empty(number, steps, dtype=torch.uint8, device=x.device)
    factor = torch.tensor(SCALE / 64).item()
    affine = torch.tensor([factor, SHIFT - (1 << 23) * factor], device=x.device)
    forward = _build.kernel("viterbi.cu", "forward", macros, x.device.index or 0)
    forward.launch(
        (-(-number // together), 1, 1),
        threads,
        (*map(_address, (x, start, back, found)), steps, number, _address(affine)),
        shared,
    )
    backward = _build.kernel("viterbi.cu", "backward", macros, x.device.index or 0)
    arguments = (*map(_address, (back, found if end is None else end, codes, root)), steps, at, number)
    backward.launch((-(-number // 32), 1, 1), 32, arguments)
    return codes, root


def block(roots: int) -> tuple[int, int, int]:
    """Threads of a block, sequences that it takes, and bytes of shared memory: the costs of two steps, or of one where two are
    too many; and eight beside."""
    threads, together = min(1024 if roots > 8192 else 512, roots), min(MOST, max(1, 32768 // roots))
    costs = roots * together
    return threads, together, 8 * costs if 8 * costs <= 200 << 10 else 4 * costs + 8


def _address(tensor: Tensor) -> Pointer:
    return Pointer(tensor.data_ptr())

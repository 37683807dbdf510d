"""_viterbi - the search of trellis codes on an NVIDIA GPU: a block of viterbi.cu searches for some sequences.

In / Out  values [N, T, V] in units of the code -> fresh bits uint8 [N, T], as lowbit.dtypes._viterbi.search gives them.
Idea      Two passes as there: around the joint with free ends, then the whole ring with the joint given. Sequences of a block
          share what depends on the state alone; where fresh bits are few (PAIRED) costs are halves, two sequences an
          instruction. Back pointers are a byte a root and leave for global memory.
Floor     132 processors x 128 lanes x 1.9 GHz / (65536 states x 1.75 passes x instructions a state and sequence): of halves 2.8
          (trellis2) and 2.5 (trellis3), 100 and 112 million weights a second; of floats 4, 70 million (H200: 58, 69 and 48).
Traps     Values are the rule's before they are rounded to half precision, costs lose their lowest bits to the winner's number:
          paths may differ from the CPU's where two are equally good to 1e-6. As halves they are rounded: distortion 1.0004
          times that of floats with three fresh bits of one value, 1.0006 with four of two, 1.0015 with four of one, which are
          floats therefore.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from lowbit.dtypes._mul1 import mul1, mul2
from lowbit.dtypes._trellis import Trellis
from lowbit.dtypes._viterbi import WARM
from lowbit.kernels.cuda import _build
from lowbit.kernels.cuda._build import Pointer

MEMORY = 4 << 30
"""Bytes of back pointers at once. The way back waits for memory once a step: half of it costs the kernels 7 % of time, twice as
much saves 3."""
PAIRED = 3
"""Fresh bits of a step of one value up to which costs are halves; one more where it has two."""
MOST = 4
"""Sequences that a block takes at most where costs are floats."""
WORDS = 32768
"""Costs, or pairs of them, that a block keeps at most: 128 KB of shared memory."""
TWICE = 200 << 10
"""Bytes of the costs of two steps up to which a block keeps them."""
SCALE, SHIFT = 0.00676727294921875, -10.3828125
"""value = (1024 + bytes) * SCALE + SHIFT: the numbers fp16 0x1EEE and 0xC931 of the rule."""


@dataclass(frozen=True)
class Cut:
    """How blocks share the work. sides: sequences whose costs share a word. together: sequences of a block. twice: whether it
    keeps the costs of two steps."""

    sides: int
    threads: int
    together: int
    twice: bool

    def shared(self, roots: int) -> int:
        """Bytes of shared memory: costs, eight bytes beside, and as halves, a word for each warp and word."""
        words = self.together // self.sides
        return 4 * roots * words * (1 + self.twice) + 8 + (words * self.threads // 8 if self.sides == 2 else 0)


def refusal(element: Trellis, device: torch.device) -> str:
    """Why the kernel does not search for an element there, or ""."""
    if _build.missing():
        return _build.missing()
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "the device is older than sm_80"
    return "" if element.rule in (mul1, mul2) else f"{element.name} has another rule than mul1 and mul2"


def search(values: Tensor, element: Trellis) -> Tensor:
    """The fresh bits of near closed paths [N, T]."""
    roots = 1 << (element.length - element.bits)
    chosen = cut(roots, halves(element, values.device))
    missing, of_one = -len(values) % chosen.together, values.shape[1] * roots
    most = max(1, MEMORY // (of_one * chosen.together)) * chosen.together
    back = torch.empty(min(most, len(values) + missing) * of_one, dtype=torch.uint8, device=values.device)
    filled = pad(values.float(), (0, 0, 0, 0, 0, missing))
    return torch.cat([_closed(part, element, chosen, back) for part in filled.split(most)])[: len(values)]


def halves(element: Trellis, device: torch.device) -> bool:
    """Whether costs are halves: as many fresh bits as leave enough of them to tell costs apart, and a whole warp of a block."""
    return torch.cuda.get_device_capability(device) >= (9, 0) and element.bits < min(PAIRED + element.width, element.length - 6)


def cut(roots: int, halves: bool) -> Cut:
    """The fastest cut for so many roots."""
    if halves:
        words = min(4, WORDS // roots)
        threads = min(512 if words > 1 else 1024, roots // 4)
        return Cut(2, threads, 2 * words, 8 * roots * words <= TWICE)
    threads, together = min(1024 if roots > 8192 else 512, roots // 4), min(MOST, max(1, WORDS // roots))
    return Cut(1, threads, together, 8 * roots * together <= TWICE)


def _closed(x: Tensor, element: Trellis, chosen: Cut, back: Tensor) -> Tensor:
    """Fresh bits [N, T] of rings near x [N, T, V]. back: room for N T roots."""
    steps = x.shape[1]
    warm = min(WARM // x.shape[2], steps // 2)
    around = torch.cat([x[:, steps - warm :], x[:, :warm]], 1)
    free = torch.full((len(x),), -1, dtype=torch.int32, device=x.device)
    joint = _pass(around, element, chosen, back, free, None, warm)[1]
    return _pass(x, element, chosen, back, joint, joint, 0)[0]


def _pass(
    x: Tensor, element: Trellis, chosen: Cut, back: Tensor, start: Tensor, end: Tensor | None, at: int
) -> tuple[Tensor, Tensor]:
    """The codes [N, T] of the cheapest path from the roots `start` to `end` (None: any), and its root before step `at`."""
    number, steps, width = x.shape
    roots = 1 << (element.length - element.bits)
    macros = (
        ("HALF", int(chosen.sides == 2)),
        ("NT", 0),
        ("FRESH", element.bits),
        ("VALUES", width),
        ("LENGTH", element.length),
        ("THREADS", chosen.threads),
        ("TOGETHER", chosen.together),
        ("SIDES", chosen.sides),
        ("TWICE", int(chosen.twice)),
    )
    factor, shifts = _affine(x, chosen.sides == 2)
    shifts = shifts.view(-1, chosen.together, steps, width).permute(0, 2, 3, 1).contiguous()
    found, root = torch.empty_like(start), torch.empty_like(start)
    codes = torch.empty(number, steps, dtype=torch.uint8, device=x.device)
    forward = _build.kernel("viterbi.cu", "forward", macros, x.device.index or 0)
    forward.launch(
        (number // chosen.together, 1, 1),
        chosen.threads,
        (*map(_address, (shifts, start, back, found)), steps, factor),
        chosen.shared(roots),
    )
    backward = _build.kernel("viterbi.cu", "backward", macros, x.device.index or 0)
    arguments = (*map(_address, (back, found if end is None else end, codes, root)), steps, at, number)
    backward.launch((-(-number // 32), 1, 1), 32, arguments)
    return codes, root


def _affine(x: Tensor, halves: bool) -> tuple[int, Tensor]:
    """The bits of a factor, and shifts: value - x = what the kernel makes of a state's bytes * factor + shift."""
    if halves:
        return 0x1EEE1EEE, (SHIFT - x).half()
    factor = torch.tensor(SCALE / 64).item()
    return _build.float_bits(factor), SHIFT + 1024 * SCALE - (1 << 23) * factor - x


def _address(tensor: Tensor) -> Pointer:
    return Pointer(tensor.data_ptr())

"""viterbi.cu on the CPU (emulated/cuda_on_cpu.h) against the element's own search. Needs g++."""

import ctypes
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor
from unit.emulated import on_cpu

from lowbit import dtypes
from lowbit.dtypes import _viterbi as law
from lowbit.dtypes._trellis import Trellis
from lowbit.kernels.cuda import _viterbi

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
ENTRY = """
extern "C" void run_forward(int blocks, const u32* shifts, const int* start, u8* back, int* end, int steps, u32 factor) {
    run({blocks, 1, 1}, 1, THREADS, [=] { forward(shifts, start, back, end, steps, factor); });
}
extern "C" void run_backward(int blocks, const u8* back, const int* end, u8* codes, int* root, int steps, int at, int count) {
    run({blocks, 1, 1}, 1, 32, [=] { backward(back, end, codes, root, steps, at, count); });
}
"""


class Emulated:
    """What `_build.kernel` gives: a function of viterbi.cu that runs here."""

    def __init__(self, folder: Path, function: str, macros: dict[str, int]) -> None:
        self._run = getattr(on_cpu.compiled(folder, "viterbi.cu", macros, ENTRY), f"run_{function}")

    def launch(self, grid: tuple[int, int, int], threads: int, arguments: tuple[int, ...], shared: int = 0) -> None:
        self._run(grid[0], *(ctypes.c_void_p(a) if isinstance(a, _viterbi.Pointer) else a for a in arguments))


@pytest.mark.parametrize("hopper", [False, True])
@pytest.mark.parametrize(("bits", "width"), [(2, 1), (3, 1), (4, 1), (3, 2), (4, 2), (5, 2)])
def test_viterbi_cu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int, width: int, hopper: bool) -> None:
    """As near as the law's search; with halves as costs (Hopper, few bits) up to their rounding."""
    element = Trellis("short", bits, _viterbi.mul1 if width == 1 else _viterbi.mul2, width=width, length=12)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9 if hopper else 8, 0))
    monkeypatch.setattr(
        _viterbi._build, "kernel", lambda file, function, macros, device: Emulated(tmp_path, function, dict(macros))
    )
    monkeypatch.setattr(_viterbi, "MEMORY", 1)  # of floats two parts follow each other
    halves = _viterbi.halves(element, torch.device("cpu"))
    assert halves == (hopper and bits <= 2 + width)
    x = torch.randn(7, 256 // width, width, generator=torch.Generator().manual_seed(0))
    found, expected = _viterbi.search(x, element), law.search(x, element._code(torch.device("cpu")))
    assert distance(element, found, x) == pytest.approx(distance(element, expected, x), rel=0.003 if halves else 0.0003)
    assert (found == expected).float().mean() > (0.85 if halves else 0.97)


def distance(element: Trellis, codes: Tensor, x: Tensor) -> float:
    """Mean squared error of the values that the rings `codes` [N, T] stand for."""
    values = element._code(torch.device("cpu")).table[element.states(codes).long()]
    return float((values - x).square().mean())


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_viterbi._build, "missing", lambda: "cuda-bindings is not installed")
    element = dtypes.get("trellis2")
    assert isinstance(element, Trellis)
    assert _viterbi.refusal(element, torch.device("cpu")) == "cuda-bindings is not installed"

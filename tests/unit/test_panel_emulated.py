"""panel.cu on the CPU (emulated/cuda_on_cpu.h) against the solvers' loops over columns. Needs g++."""

import ctypes
import shutil
from pathlib import Path

import pytest
import torch
from unit.emulated import on_cpu

from lowbit import formats
from lowbit.kernels.cuda import _panel
from lowbit.solvers import codec, damping, descent, ldl, panels

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
ENTRY = """
extern "C" void run_rounded(int blocks, const float* base, const float* moved, const float* pull, const int* group,
                            const long long* place, const float* scale, const float* zero, const float* levels, float* codes,
                            float* values, float* errors, float* changes, int out, int n, int stride, u32 low, u32 high) {
    run({blocks, 1, 1}, 1, THREADS, [=] {
        rounded(base, moved, pull, group, place, scale, zero, levels, codes, values, errors, changes, out, n, stride, low,
                high);
    });
}
"""


class Emulated:
    """What `_build.kernel` gives: panel.cu compiled for the CPU."""

    def __init__(self, folder: Path, macros: dict[str, int]) -> None:
        self._run = on_cpu.compiled(folder, "panel.cu", macros, ENTRY).run_rounded

    def launch(self, grid: tuple[int, int, int], threads: int, arguments: tuple[int, ...]) -> None:
        assert threads == _panel.THREADS
        self._run(grid[0], *(ctypes.c_void_p(a) if isinstance(a, _panel._build.Pointer) else a for a in arguments))


@pytest.fixture
def emulated(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.getbasetemp()
    monkeypatch.setattr(_panel, "refusal", lambda weight: "")
    monkeypatch.setattr(_panel._build, "kernel", lambda file, function, macros, device: Emulated(folder, dict(macros)))


@pytest.mark.parametrize(
    ("text", "out", "inputs"),
    [("int4-g32", 70, 608), ("int3-g32-asym", 3, 100), ("int2-row", 65, 130), ("nf4-g64", 5, 64), ("lut2-row", 6, 160)],
)
@pytest.mark.usefixtures("emulated")
def test_panels_equal_the_loops(text: str, out: int, inputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Feedback, then a sweep: codes and losses are those of the loops in torch."""
    torch.manual_seed(0)
    columns = formats.parse(text).group[1]
    inputs = inputs // columns * columns if columns else inputs
    seen = torch.randn(600, inputs) @ torch.randn(inputs, inputs)
    moment, w = seen.T @ seen / 600, torch.randn(out, inputs)
    factor = damping.factorise(moment, damping.rounding_order(moment, "activation"), 0.01)
    rounding = codec.codec(formats.parse(text).fit(w, search=False))
    found = ldl.solve(w, factor, rounding)
    swept = descent.sweep(w, moment, rounding, *found)
    again = descent.sweep(w, moment, rounding, *swept)
    monkeypatch.setattr(_panel, "refusal", lambda weight: "no GPU")
    assert panels.kernel(w, rounding) is None
    wanted = ldl.solve(w, factor, rounding)
    for have, want in (
        (found, wanted),
        (swept, descent.sweep(w, moment, rounding, *found)),
        (again, descent.sweep(w, moment, rounding, *swept)),
    ):
        assert (rounding.stored(have[0]) == rounding.stored(want[0])).float().mean() > 0.98
        assert ldl.loss(w - have[1], moment) == pytest.approx(ldl.loss(w - want[1], moment), rel=0.02)
    assert ldl.loss(w - swept[1], moment) < ldl.loss(w - found[1], moment)


def test_it_is_for_gpus() -> None:
    assert _panel.refusal(torch.ones(1)) == "device cpu is not an NVIDIA GPU"

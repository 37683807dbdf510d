"""activations.cu and linear.cu with byte inputs on the CPU (emulated/cuda_on_cpu.h): codes are those of the law, products
those of the codes. Needs g++.
"""

import ctypes
import shutil
from pathlib import Path

import pytest
import torch
from unit.emulated import on_cpu

from lowbit import formats, sides
from lowbit.kernels import activation as acting
from lowbit.kernels import dispatch, packing
from lowbit.kernels.cuda import _activations, _product, byte_act
from lowbit.kernels.cuda._build import Pointer
from lowbit.kernels.cuda._product import Tiles
from lowbit.sides import _hadamard

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
ENTRY = {
    "quantize": """
extern "C" void run_quantize(int gx, int gy, int gz, const u8* x, u8* codes, float* scale, const u16* factors,
                             const float* matrix, int n, int share, int unit) {
    run({gx, gy, gz}, 1, THREADS, [=] { quantize(x, codes, scale, factors, matrix, n, share, unit); });
}
""",
    "product": """
extern "C" void run_product(int gx, int gy, int gz, const u8* x, const u8* low, const u8* high, const u8* meta, u16* y,
                            const float* token_scale, float* part, int* count, int tokens, int rows, int inputs, int chunks,
                            int span) {
    run({gx, gy, gz}, 1, THREADS, [=] {
        product(x, low, high, meta, y, token_scale, part, count, tokens, rows, inputs, chunks, span);
    });
}
""",
}


class Emulated:
    """What `_build.kernel` gives: a function of a .cu file compiled for the CPU."""

    def __init__(self, folder: Path, file: str, function: str, macros: dict[str, int]) -> None:
        self._run = getattr(on_cpu.compiled(folder, file, macros, ENTRY[function]), f"run_{function}")

    def launch(
        self,
        grid: tuple[int, int, int],
        threads: int,
        arguments: tuple[int, ...],
        shared: int,
        overlap: bool = False,
    ) -> None:
        assert shared <= _product.SHARED
        self._run(*grid, *(ctypes.c_void_p(a) if isinstance(a, Pointer) else a for a in arguments))


@pytest.fixture
def emulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_activations, "THREADS", 64)
    monkeypatch.setattr(
        byte_act._build, "kernel", lambda file, function, macros, device: Emulated(tmp_path, file, function, dict(macros))
    )


CASES = [("int8", 320, torch.bfloat16, 0, False), ("e4m3", 64, torch.float16, 0, True),
         ("int8", 512, torch.bfloat16, 128, True),
         ("int8", 1024, torch.float16, 1024, False), ("e4m3", 1152, torch.bfloat16, 576, False)]  # fmt: skip


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize(("element", "inputs", "dtype", "size", "ordered"), CASES)
def test_activations_cu(element: str, inputs: int, dtype: torch.dtype, size: int, ordered: bool) -> None:
    torch.manual_seed(inputs)
    x = torch.randn(3, inputs).to(dtype)
    x[1, 7] = 30
    factors = torch.randint(0, 2, (inputs,)).mul(2).sub(1).half() if size else None
    assert not _activations.refusal(x, size)
    codes, scale = _activations.quantize(x, byte_act.ELEMENTS[element], 0.9, ordered, size, factors)
    turned = x if factors is None else _hadamard.apply(x.double() * factors, size)
    text = "int8-token" if element == "int8" else "fp8-token"
    expected, scales = acting.quantize(turned.float(), acting.Activation(formats.parse(text), 0.9))
    if ordered:  # position (u, t, p, c, byte) holds (u, c, t, p, byte)
        expected = expected.view(3, -1, 4, 2, 2, 4).permute(0, 1, 3, 4, 2, 5).reshape(3, inputs)
    torch.testing.assert_close(scale, scales.view(-1), rtol=1e-6 if size else 0, atol=0)
    same = codes.view(torch.uint8) == expected.view(torch.uint8)
    assert same.float().mean() > (0.995 if size else 0.9999), same.float().mean()


WAYS = [("int8", 48, 320, 3, Tiles(1, 1, 2, 1, 2)), ("int8", 80, 640, 20, Tiles(1, 4, 1, 2, 3, 2, True)),
        ("e4m3", 64, 320, 9, Tiles(2, 1, 2, 1, 2)), ("e4m3", 64, 576, 9, Tiles(1, 4, 1, 1, 3, 2, True))]  # fmt: skip


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize(("element", "rows", "inputs", "tokens", "how"), WAYS)
def test_linear_cu_with_bytes(
    monkeypatch: pytest.MonkeyPatch, element: str, rows: int, inputs: int, tokens: int, how: Tiles
) -> None:
    torch.manual_seed(rows)
    monkeypatch.setattr(_product, "tiles", lambda *a: how)
    format = formats.parse("int8-row" if element == "int8" else "fp8-row")
    w = torch.randn(rows, inputs)
    q = format.fit(w, search=False).quantize(w)
    packed, parts = packing.split(format, packing.pack(q), q.shape)
    prepared = byte_act.prepare(format, packed, parts, q.shape)
    again, parts_again = byte_act.restore(prepared, format, q.shape)
    assert torch.equal(again, packed) and torch.equal(parts_again["scale"].float(), parts["scale"].float())
    activation = acting.Activation(formats.parse("int8-token" if element == "int8" else "fp8-token"))
    x = torch.randn(tokens, inputs).bfloat16()
    found = byte_act.rounded(x, prepared, format, q.shape, activation)
    codes, scale = acting.quantize(x, activation)
    values = codes.double() if element == "int8" else codes.view(torch.float8_e4m3fn).double()
    exact = values * scale.double() @ q.decode().double().T
    assert float((found.double() - exact).norm() / exact.norm()) < 3e-3


@pytest.mark.usefixtures("emulated")
def test_a_turned_basis_is_part_of_the_launch_that_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(_product, "tiles", lambda *a: Tiles(1, 1, 2, 1, 2))
    format, activation = formats.parse("int8-row-turn"), acting.Activation(formats.parse("int8-token"))
    q = format.fit(torch.randn(32, 256), search=False).quantize(torch.randn(32, 256))
    packed, parts = packing.split(format, packing.pack(q), q.shape)
    prepared = dispatch.prepare("cuda.byte_act", format, packed, parts, q.shape)
    x = torch.randn(3, 256).bfloat16()
    assert not byte_act.turned(sides.get("turn"), x, activation)
    monkeypatch.setattr(sides.get("turn").__class__, "before", lambda *a: pytest.fail("turned beside the launch"))
    with torch.no_grad():
        found = dispatch.linear(x, prepared, "cuda.byte_act", format, q.shape, activation)
    codes, scale = acting.quantize(_hadamard.apply(x.double(), 256).float(), activation)
    exact = codes.double() * scale.double() @ q.grid.inner(q.codes).double().T
    assert float((found.double() - exact).norm() / exact.norm()) < 3e-3

"""activations.cu and linear.cu with byte inputs on the CPU (emulated/cuda_on_cpu.h): codes are those of the law, products
those of the codes. Needs g++.
"""

import ctypes
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from unit.emulated import on_cpu

from lowbit import formats, sides
from lowbit.kernels import activation as acting
from lowbit.kernels import dispatch, packing
from lowbit.kernels.cuda import _activations, _product, byte_act, int4_act
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


CASES = [("int8", 320, torch.bfloat16, 0, 0), ("e4m3", 64, torch.float16, 0, 1), ("int8", 512, torch.bfloat16, 128, 1),
         ("int8", 1024, torch.float16, 1024, 0), ("e4m3", 1152, torch.bfloat16, 576, 0),
         ("int8", 336, torch.bfloat16, 0, 2)]  # fmt: skip


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize(("element", "inputs", "dtype", "size", "ordered"), CASES)
def test_activations_cu(element: str, inputs: int, dtype: torch.dtype, size: int, ordered: int) -> None:
    torch.manual_seed(inputs)
    x = torch.randn(3, inputs).to(dtype)
    x[1, 7] = 30
    factors = torch.randint(0, 2, (inputs,)).mul(2).sub(1).half() if size else None
    assert not _activations.refusal(x, size)
    codes, scale = _activations.quantize(x, byte_act.ELEMENTS[element], 0.9, ordered, size, factors)
    turned = x if factors is None else _hadamard.apply(x.double() * factors, size)
    text = "int8-token" if element == "int8" else "fp8-token"
    expected, scales = acting.quantize(turned.float(), acting.Activation(formats.parse(text), 0.9))
    if ordered == 2:  # position (k, p) of 16 holds (p, k)
        expected = expected.view(3, -1, 2, 8).transpose(2, 3).reshape(3, inputs)
    if ordered == 1:  # position (u, t, p, c, byte) holds (u, c, t, p, byte)
        expected = expected.view(3, -1, 4, 2, 2, 4).permute(0, 1, 3, 4, 2, 5).reshape(3, inputs)
    torch.testing.assert_close(scale, scales.view(-1), rtol=1e-6 if size else 0, atol=0)
    same = codes.view(torch.uint8) == expected.view(torch.uint8)
    assert same.float().mean() > (0.995 if size else 0.9999), same.float().mean()


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize(("text", "dtype"), [
    ("int8-token", torch.bfloat16), ("int8-token", torch.float16), ("fp8-token", torch.float16), ("fp8-g128", torch.bfloat16),
])  # fmt: skip
def test_x_is_rounded_and_decoded_at_once(text: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    activation = acting.parse(f"{text}-clip0.9")
    x = (torch.randn(5, 640) * (1 + torch.arange(640) // 128)).to(dtype)
    x[1, 7], x[2] = 30, 0
    kind = byte_act.ELEMENTS[activation.format.element]
    found, _ = _activations.quantize(x, kind, activation.clip, grouped=activation.format.group[1] == 128, decoded=True)
    assert found.dtype == dtype and torch.equal(found, acting.fake(x, activation))


@pytest.mark.usefixtures("emulated")
def test_many_tokens_times_nibbles_are_a_product_of_rounded_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(int4_act._fragments, "linear", lambda x, *a: x @ q.decode().to(x.dtype).T)
    activation = acting.parse("int8-token")
    q = formats.parse("int4-g128").fit(torch.randn(32, 256), search=False).quantize(torch.randn(32, 256))
    x = torch.randn(65, 256).bfloat16()
    found = int4_act.rounded(x, laid(int4_act, q), q.format, q.shape, activation)
    assert torch.equal(found, acting.fake(x, activation) @ q.decode().bfloat16().T)


def laid(kernel: Any, q: formats.Quantized) -> dict[str, Tensor]:
    """A matrix as a kernel reads it, from which what was stored comes back."""
    packed, parts = packing.split(q.format, packing.pack(q), q.shape)
    prepared: dict[str, Tensor] = kernel.prepare(q.format, packed, parts, q.shape)
    again, parts_again = kernel.restore(prepared, q.format, q.shape)
    assert torch.equal(again, packed) and torch.equal(parts_again["scale"].float(), parts["scale"].float())
    return prepared


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
    prepared = laid(byte_act, q)
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


GROUPED = [("int4-g128", 40, 512, 3, Tiles(1, 1, 2, 1, 2)), ("int4-g64", 80, 768, 20, Tiles(1, 4, 1, 2, 3, 2, True)),
           ("int4-g256", 64, 512, 9, Tiles(2, 1, 2, 1, 2)), ("int4-row", 48, 256, 1, Tiles(1, 3, 1, 1, 2))]  # fmt: skip


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize(("text", "rows", "inputs", "tokens", "how"), GROUPED)
def test_linear_cu_with_bytes_and_nibbles(
    monkeypatch: pytest.MonkeyPatch, text: str, rows: int, inputs: int, tokens: int, how: Tiles
) -> None:
    torch.manual_seed(rows)
    monkeypatch.setattr(_product, "tiles", lambda *a: how)
    format, activation = formats.parse(text), acting.parse("int8-token-clip0.9")
    q = format.fit(torch.randn(rows, inputs), search=False).quantize(torch.randn(rows, inputs))
    assert not int4_act.refusal(activation, format, q.shape)
    prepared = laid(int4_act, q)
    x = torch.randn(tokens, inputs).bfloat16()
    found = int4_act.rounded(x, prepared, format, q.shape, activation)
    codes, scale = acting.quantize(x, activation)
    wanted = (codes.double() * scale.double()) @ q.decode().double().T
    assert float((found.double() - wanted).norm() / wanted.norm()) < 3e-3


def test_nibbles_that_the_kernel_does_not_take_are_refused() -> None:
    plain, shape = acting.parse("int8-token"), (64, 512)
    assert not int4_act.refusal(plain, formats.parse("int4-g128"), shape)
    for activation, text, size in [
        ("int8-token", "int4-g32", shape), ("int8-token", "int4-g128-asym", shape), ("int8-token", "int3-g128", shape),
        ("int4-token", "int4-g128", shape), ("int8-g128", "int4-g128", shape), ("int8-token", "int4-g128", (64, 384)),
    ]:  # fmt: skip
        assert int4_act.refusal(acting.parse(activation), formats.parse(text), size), (activation, text)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize(("rows", "inputs", "tokens", "how"), [
    (128, 384, 3, Tiles(1, 1, 2, 1, 2)), (256, 512, 20, Tiles(1, 4, 1, 2, 2, 1, True)), (256, 256, 9, Tiles(2, 1, 2, 1, 2)),
    (128, 640, 1, Tiles(1, 2, 1, 1, 3, 2)),
])  # fmt: skip
def test_linear_cu_with_float8_in_blocks(
    monkeypatch: pytest.MonkeyPatch, rows: int, inputs: int, tokens: int, how: Tiles
) -> None:
    torch.manual_seed(rows)
    monkeypatch.setattr(_product, "tiles", lambda *a: how)
    format, activation = formats.parse("fp8-b128x128"), acting.parse("fp8-g128")
    w = torch.randn(rows, inputs) * (1 + torch.arange(inputs) // 128) * (1 + torch.arange(rows) // 128)[:, None]
    q = format.fit(w, search=False).quantize(w)
    assert not byte_act.refusal(activation, format, q.shape)
    prepared = laid(byte_act, q)
    x = (torch.randn(tokens, inputs) * (1 + torch.arange(inputs) // 128)).bfloat16()
    x[0, :128] = 0
    wanted = acting.fake(x.float(), activation).double() @ q.decode().double().T
    found = byte_act.rounded(x, prepared, format, q.shape, activation)
    assert float((found.double() - wanted).norm() / wanted.norm()) < 3e-3
    many = byte_act._many_in_blocks(x, prepared, q.shape, activation)
    assert float((many.double() - wanted).norm() / wanted.norm()) < 6e-3


def test_blocks_and_groups_go_together() -> None:
    for activation, text, shape in [
        ("fp8-token", "fp8-b128x128", (256, 256)), ("fp8-g128", "fp8-row", (256, 256)),
        ("int8-g128", "int8-b128x128", (256, 256)), ("fp8-g128", "fp8-b128x128", (192, 256)),
    ]:  # fmt: skip
        assert byte_act.refusal(acting.parse(activation), formats.parse(text), shape), (activation, text)

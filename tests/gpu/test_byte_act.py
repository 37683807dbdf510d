"""8-bit weights times 8-bit inputs on a GPU against the float64 product of the rounded inputs. Needs an NVIDIA GPU."""

import pytest
import torch

from lowbit import formats
from lowbit.kernels import activation as acting
from lowbit.kernels import packing
from lowbit.kernels.activation import Activation
from lowbit.kernels.cuda import _activations, _bytes, byte_act, int4_act
from lowbit.sides import _hadamard

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]


@pytest.mark.parametrize("element", ["int8", "e4m3"])
@pytest.mark.parametrize("shape", [(4096, 4096), (1008, 1088), (128, 14336), (14336, 512)])
def test_products(element: str, shape: tuple[int, int]) -> None:
    format = formats.parse("int8-row" if element == "int8" else "fp8-row")
    activation = Activation(formats.parse("int8-token" if element == "int8" else "fp8-token"))
    q = format.fit(torch.randn(shape, device="cuda"), search=False).quantize(torch.randn(shape, device="cuda"))
    assert not byte_act.takes(activation, format, shape, q.codes.device)
    packed, parts = packing.split(format, packing.pack(q), shape)
    prepared = byte_act.prepare(format, packed, parts, shape)
    exact = q.decode().double()
    for tokens in (1, 2, 8, 9, 16, 17, 24, 25, 64, 65, 129, 300, 600):
        x = torch.randn(tokens, shape[1], device="cuda").bfloat16()
        x[0, 3] = 30
        codes, scale = acting.quantize(x, activation)
        values = codes.double() if element == "int8" else codes.view(torch.float8_e4m3fn).double()
        wanted = values * scale.double() @ exact.T
        _, own = _activations.quantize(x, byte_act.ELEMENTS[element])
        assert torch.equal(own, scale.view(-1))  # an ulp apart, values halfway between two codes go the other way
        y = byte_act.rounded(x, prepared, format, shape, activation)
        error = float((y.double() - wanted).norm() / wanted.norm())
        assert error < 4e-3, (tokens, error)


def many(
    element: str, tokens: int, rows: int, inputs: int
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
    """Codes, their scales, prepared weights and the exact product."""
    format = formats.parse("int8-row" if element == "int8" else "fp8-row")
    q = format.fit(torch.randn(rows, inputs, device="cuda"), search=False).quantize(torch.randn(rows, inputs, device="cuda"))
    packed, parts = packing.split(format, packing.pack(q), q.shape)
    x = torch.randn(tokens, inputs, device="cuda").bfloat16() * (1 + torch.arange(tokens, device="cuda")[:, None] % 7)
    codes, scale = _activations.quantize(x, byte_act.ELEMENTS[element])
    exact = codes.double() * scale.double()[:, None] @ q.decode().double().T
    return codes, scale, byte_act.prepare(format, packed, parts, q.shape), exact


@pytest.mark.parametrize(
    ("element", "how"), [(name, how) for name, kind in byte_act.ELEMENTS.items() for how in _bytes.CUTS[kind]]
)
@pytest.mark.parametrize(("tokens", "rows", "inputs", "dtype"), [
    (25, 4096, 4096, torch.bfloat16),
    (65, 4096, 4096, torch.bfloat16),
    (129, 1008, 1088, torch.float16),
    (300, 16, 14336, torch.bfloat16),
    (1000, 14336, 512, torch.bfloat16),
    (4096, 2064, 576, torch.float16),
])  # fmt: skip
def test_products_of_many_tokens(
    element: str, tokens: int, rows: int, inputs: int, dtype: torch.dtype, how: _bytes.Cut
) -> None:
    """Several tiles a block, tiles that end beyond both sides; sums of int8 are exact."""
    codes, scale, prepared, exact = many(element, tokens, rows, inputs)
    y = torch.full((tokens + 1, rows), float("nan"), dtype=dtype, device="cuda")
    _bytes.launch(codes, scale, prepared, y[:tokens], byte_act.ELEMENTS[element], how)
    assert bool(y[tokens:].isnan().all())
    error = (y[:tokens].double() - exact).norm(dim=1) / exact.norm(dim=1)
    assert float(error.max()) < (4e-3 if dtype == torch.bfloat16 else 6e-4) + (2e-3 if element == "e4m3" else 0)


@pytest.mark.parametrize("text", ["int8-row", "fp8-row", "int4-g128"])
def test_products_of_many_tokens_in_a_graph(text: str) -> None:
    """Rounding and product again and again, each of which begins before the one before has ended."""
    format, activation = formats.parse(text), acting.parse("fp8-token" if text == "fp8-row" else "int8-token")
    kernel = int4_act if text.startswith("int4") else byte_act
    q = format.fit(torch.randn(4096, 4096, device="cuda"), search=False).quantize(torch.randn(4096, 4096, device="cuda"))
    packed, parts = packing.split(format, packing.pack(q), q.shape)
    prepared = kernel.prepare(format, packed, parts, q.shape)
    x = torch.randn(1024, 4096, device="cuda").bfloat16()
    call = lambda: kernel.rounded(x, prepared, format, (4096, 4096), activation)  # noqa: E731
    call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = [call() for _ in range(4)]
    x.copy_(torch.randn(1024, 4096, device="cuda"))
    graph.replay()
    torch.cuda.synchronize()
    wanted = call()
    assert all(torch.equal(y, wanted) for y in found)


@pytest.mark.parametrize("text", ["int4-g128", "int4-g64", "int4-row"])
@pytest.mark.parametrize("shape", [(4096, 4096), (1000, 1280), (128, 14336), (14336, 512)])
def test_products_of_nibbles(text: str, shape: tuple[int, int]) -> None:
    format, activation = formats.parse(text), Activation(formats.parse("int8-token"))
    q = format.fit(torch.randn(shape, device="cuda"), search=False).quantize(torch.randn(shape, device="cuda"))
    assert not int4_act.takes(activation, format, shape, q.codes.device)
    packed, parts = packing.split(format, packing.pack(q), shape)
    prepared, exact = int4_act.prepare(format, packed, parts, shape), q.decode().double()
    for tokens in (1, 2, 8, 9, 16, 17, 64, 65, 300, 1500):
        x = torch.randn(tokens, shape[1], device="cuda").bfloat16()
        x[0, 3] = 30
        codes, scale = acting.quantize(x, activation)
        wanted = codes.double() * scale.double() @ exact.T
        y = int4_act.rounded(x, prepared, format, shape, activation)
        error = float((y.double() - wanted).norm() / wanted.norm())
        assert error < (4e-3 if tokens <= 64 else 6e-3), (tokens, error)  # many tokens: rounded x in bfloat16


@pytest.mark.parametrize("shape", [(4096, 4096), (128, 1152), (1024, 14336)])
def test_products_of_blocks(shape: tuple[int, int]) -> None:
    format, activation = formats.parse("fp8-b128x128"), Activation(formats.parse("fp8-g128"))
    spread = 1 + torch.arange(shape[1], device="cuda") // 128
    q = format.fit(torch.randn(shape, device="cuda") * spread, search=False).quantize(
        torch.randn(shape, device="cuda") * spread
    )
    assert not byte_act.takes(activation, format, shape, q.codes.device)
    packed, parts = packing.split(format, packing.pack(q), shape)
    prepared, exact = byte_act.prepare(format, packed, parts, shape), q.decode().double()
    again, parts_again = byte_act.restore(prepared, format, shape)
    assert torch.equal(again, packed) and torch.equal(parts_again["scale"], parts["scale"])
    for tokens in (1, 2, 8, 9, 16, 17, 64, 65, 300):
        x = (torch.randn(tokens, shape[1], device="cuda") / spread).bfloat16()
        wanted = acting.fake(x.float(), activation).double() @ exact.T
        error = float((byte_act.rounded(x, prepared, format, shape, activation).double() - wanted).norm() / wanted.norm())
        assert error < (4e-3 if tokens <= 64 else 6e-3), (tokens, error)


@pytest.mark.parametrize("text", ["int8-token", "fp8-token", "fp8-g128"])
def test_rounded_inputs(text: str) -> None:
    """To the bit what the law gives, in one launch."""
    activation = acting.parse(text)
    kind, grouped = byte_act.ELEMENTS[activation.format.element], activation.format.group[1] == 128
    for tokens, inputs, dtype in ((70, 4096, torch.bfloat16), (700, 14336, torch.float16), (3000, 1280, torch.bfloat16)):
        x = torch.randn(tokens, inputs, device="cuda").to(dtype)
        x[0, 3], x[1] = 30, 0
        found, _ = _activations.quantize(x, kind, grouped=grouped, decoded=True)
        assert torch.equal(found, acting.fake(x, activation))


@pytest.mark.parametrize(("inputs", "size"), [(4096, 4096), (4096, 128), (14336, 14336), (11008, 64), (1024, 0)])
def test_rounding_behind_hadamard(inputs: int, size: int) -> None:
    for tokens in (7, 300, 700, 3000):
        x = torch.randn(tokens, inputs, device="cuda").bfloat16()
        codes, scale = _activations.quantize(x, byte_act.INT8, size=size)
        turned = _hadamard.apply(x.double(), size) if size else x.double()
        expected, scales = acting.quantize(turned.float(), Activation(formats.parse("int8-token")))
        torch.testing.assert_close(scale, scales.view(-1), rtol=1e-5, atol=0)
        assert (codes == expected).float().mean() > 0.995

"""8-bit weights times 8-bit inputs on a GPU against the float64 product of the rounded inputs. Needs an NVIDIA GPU."""

import pytest
import torch

from lowbit import formats
from lowbit.kernels import activation as acting
from lowbit.kernels import packing
from lowbit.kernels.activation import Activation
from lowbit.kernels.cuda import _activations, byte_act, int4_act
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
    for tokens in (1, 2, 8, 9, 16, 17, 64, 65, 300):
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


@pytest.mark.parametrize("text", ["int4-g128", "int4-g64", "int4-row"])
@pytest.mark.parametrize("shape", [(4096, 4096), (1000, 1280), (128, 14336), (14336, 512)])
def test_products_of_nibbles(text: str, shape: tuple[int, int]) -> None:
    format, activation = formats.parse(text), Activation(formats.parse("int8-token"))
    q = format.fit(torch.randn(shape, device="cuda"), search=False).quantize(torch.randn(shape, device="cuda"))
    assert not int4_act.takes(activation, format, shape, q.codes.device)
    packed, parts = packing.split(format, packing.pack(q), shape)
    prepared, exact = int4_act.prepare(format, packed, parts, shape), q.decode().double()
    for tokens in (1, 2, 8, 9, 16, 17, 64, 65, 300):
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


@pytest.mark.parametrize(("inputs", "size"), [(4096, 4096), (4096, 128), (14336, 14336), (11008, 64), (1024, 0)])
def test_rounding_behind_hadamard(inputs: int, size: int) -> None:
    x = torch.randn(7, inputs, device="cuda").bfloat16()
    codes, scale = _activations.quantize(x, byte_act.INT8, size=size)
    turned = _hadamard.apply(x.double(), size) if size else x.double()
    expected, scales = acting.quantize(turned.float(), Activation(formats.parse("int8-token")))
    torch.testing.assert_close(scale, scales.view(-1), rtol=1e-5, atol=0)
    assert (codes == expected).float().mean() > 0.995

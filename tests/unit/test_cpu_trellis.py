"""Trellis codes computed in C++: the decoded matrix's product for every rule and rate, the same bytes back, odd sizes."""

import pytest
import torch

from lowbit import formats
from lowbit.formats import Quantized
from lowbit.kernels import dispatch, packing
from lowbit.layers.linear import QuantizedLinear

NAME = "cpu.trellis"
TEXTS = (
    "trellis1-plain", "trellis2-plain", "trellis3-row-plain", "trellis4-plain-half", "trellis1.5-plain", "trellis2.5-plain",
    "trellis3.5-plain", "trellis_pair2-plain", "trellis_int2-plain", "trellis_int3-row-fp16-plain", "trellis_int4-plain",
    "trellis_short2-plain", "trellis_short3-plain", "trellis_short4-plain",
)  # fmt: skip
SHAPES = ((48, 1152), (208, 256), (64, 400))
pytestmark = pytest.mark.skipif(bool(dispatch.missing(NAME)), reason=f"{NAME}: {dispatch.missing(NAME)}")


def quantized(text: str, shape: tuple[int, int]) -> Quantized:
    """Random codes and scales: what is decoded need not have been searched for."""
    format = formats.parse(text)
    scale = torch.rand(format.groups(shape)) + 0.1
    stored = {"fp32": torch.float32, "fp16": torch.float16}.get(format.scale, torch.bfloat16)
    codes = torch.randint(0, format.dtype.codes, format.codes_shape(shape), dtype=torch.uint8)
    return Quantized(format, codes, {"scale": scale.to(stored)}, shape)


def prepared(q: Quantized) -> dict[str, torch.Tensor]:
    packed, parts = packing.split(q.format, packing.pack(q), q.shape)
    found = dispatch.prepare(NAME, q.format, packed, parts, q.shape)
    again, again_parts = dispatch.restore(NAME, found, q.format, q.shape)
    assert torch.equal(again, packed) and all(torch.equal(again_parts[k], v) for k, v in parts.items())
    return found


@pytest.mark.parametrize("text", TEXTS)
def test_it_is_the_product_of_the_decoded_matrix(text: str) -> None:
    torch.manual_seed(0)
    for shape in SHAPES:
        q = quantized(text, shape)
        held, dense = prepared(q), q.decode().double()
        for tokens, dtype, bound in (
            (1, torch.float32, 1e-6),
            (3, torch.float32, 1e-6),
            (20, torch.float32, 1e-6),
            (1, torch.bfloat16, 3e-3),
            (6, torch.bfloat16, 3e-3),
            (20, torch.bfloat16, 3e-3),
        ):
            x = torch.randn(tokens, shape[1]).to(dtype)
            y, wanted = dispatch.linear(x, held, NAME, q.format, shape), x.double() @ dense.t()
            assert y.dtype == dtype and float((y.double() - wanted).norm() / wanted.norm()) < bound, (shape, tokens, dtype)


def test_inputs_of_16_bits_lose_less_than_the_rounding_of_values_to_half_precision() -> None:
    """One input at a time: y is a column of W, so that what is lost on the way to bfloat16 shows."""
    q = quantized("trellis2-plain", (64, 256))
    held, dense = prepared(q), q.decode()
    for k in (0, 7, 130, 255):
        x = torch.zeros(1, 256, dtype=torch.bfloat16)
        x[0, k] = 1.0
        y = dispatch.linear(x, held, NAME, q.format, q.shape).float()
        assert ((y - dense[:, k]).abs() <= dense[:, k].abs() * 2**-8 + dense.abs().max() * 2**-11).all()


def test_the_largest_sums_do_not_overflow_and_what_is_no_number_stays_so() -> None:
    q = quantized("trellis2-plain", (64, 1024))
    held = prepared(q)
    x = torch.full((2, 1024), 3.0, dtype=torch.bfloat16)
    wanted = x.double() @ q.decode().double().t()
    y = dispatch.linear(x, held, NAME, q.format, q.shape)
    assert float((y.double() - wanted).norm() / wanted.norm()) < 5e-3
    x[1, 5] = float("inf")
    y = dispatch.linear(torch.stack([x[0] * 0, x[1]]), held, NAME, q.format, q.shape)
    assert (y[0] == 0).all() and not y[1].isfinite().any()


def test_layers_take_it_and_what_it_refuses_goes_elsewhere() -> None:
    assert QuantizedLinear.from_quantized(quantized("trellis2-plain", (64, 256))).prepare().kernel == NAME
    cpu, told = torch.device("cpu"), dispatch.get(NAME).supports
    assert "bytes summed" in told(formats.parse("trellis6-plain"), (64, 256), cpu, torch.float32, 1)
    assert "bytes summed" in told(formats.parse("three_inst2-plain"), (64, 256), cpu, torch.float32, 1)
    assert "one plain scale" in told(formats.parse("trellis2-g128-plain"), (64, 256), cpu, torch.float32, 1)
    assert "float32 and bfloat16" in told(formats.parse("trellis2-plain"), (64, 256), cpu, torch.float16, 1)

"""Tables, vectors and trellises in C++: the decoded matrix's product, the same bytes back, for few and many tokens."""

import pytest
import torch

from lowbit import formats
from lowbit.formats import Format, Quantized, _books
from lowbit.kernels import dispatch, packing
from lowbit.layers.linear import QuantizedLinear

NAME = "cpu.decoded"
SHAPE = (48, 1152)
TEXTS = (
    "nf4-g64", "nf4-g128-fp32", "e2m1-g32-e8m0", "sf4-row", "mxfp4", "lut2-row", "lut3-row", "lut4-row", "e8p2-plain",
    "e8p3-row-plain", "e8p4-plain", "aqlm1x8", "aqlm2x8", "aqlm1x16", "trellis1-plain", "trellis2-plain", "trellis8-plain",
    "trellis1.5-plain", "trellis_int3-plain", "three_inst2-plain", "hyb2-plain", "trellis_short3-plain",
)  # fmt: skip
pytestmark = pytest.mark.skipif(bool(dispatch.missing(NAME)), reason=f"{NAME}: {dispatch.missing(NAME)}")


def quantized(format: Format) -> Quantized:
    """Random codes and parts: what is decoded need not have been searched for."""
    out, rows = SHAPE[0], format.groups(SHAPE)
    if format.rule == "aqlm":
        books, bits = _books.sizes(format)
        parts = {"codebooks": torch.randn(books, 1 << bits, 8).half(), "scale": torch.rand(out, 1).bfloat16()}
    elif format.rule == "lut":
        parts = {"table": torch.randn(out, format.dtype.codes).half()}
    elif format.scale == "e8m0":
        parts = {"scale": torch.randint(110, 130, rows, dtype=torch.uint8)}
    else:
        parts = {"scale": (torch.rand(rows) + 0.1).to(torch.float32 if format.scale == "fp32" else torch.bfloat16)}
    codes = torch.randint(0, format.dtype.codes, format.codes_shape(SHAPE), dtype=torch.uint8)
    return Quantized(format, codes, parts, SHAPE)


@pytest.mark.parametrize("text", TEXTS)
def test_it_is_the_product_of_the_decoded_matrix(text: str) -> None:
    torch.manual_seed(0)
    q, kernel = quantized(formats.parse(text)), dispatch.get(NAME)
    assert not kernel.supports(q.format, SHAPE, torch.device("cpu"), torch.float32, 1)
    packed, parts = packing.split(q.format, packing.pack(q), SHAPE)
    prepared = dispatch.prepare(NAME, q.format, packed, parts, SHAPE)
    again, again_parts = dispatch.restore(NAME, prepared, q.format, SHAPE)
    assert torch.equal(again, packed) and all(torch.equal(again_parts[k], v) for k, v in parts.items())
    dense = q.decode().double()
    for tokens, dtype, bound in (
        (1, torch.float32, 1e-6),
        (5, torch.float32, 1e-6),
        (40, torch.float32, 1e-6),
        (3, torch.bfloat16, 4e-3),
    ):
        x = torch.randn(tokens, SHAPE[1]).to(dtype)
        y, wanted = dispatch.linear(x, prepared, NAME, q.format, SHAPE), x.double() @ dense.t()
        assert y.dtype == dtype and float((y.double() - wanted).norm() / wanted.norm()) < bound, (tokens, dtype)


def test_layers_take_it_and_what_it_refuses_goes_elsewhere() -> None:
    layer = QuantizedLinear.from_quantized(quantized(formats.parse("three_inst2-plain"))).prepare()
    assert layer.kernel == NAME and layer.resident_bytes() == layer.memory_bytes()
    cpu, told = torch.device("cpu"), dispatch.get(NAME).supports
    assert "plain scales" in told(formats.parse("nvfp4"), SHAPE, cpu, torch.float32, 1)
    assert "multiples of 16" in told(formats.parse("nf4-row"), (48, 1000), cpu, torch.float32, 1)

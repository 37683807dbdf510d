"""QuantizedLinear: the decoded matrix's function, exact codes through every move, the bytes that were promised."""

import copy
import pickle

import pytest
import torch

from lowbit import formats
from lowbit.formats import Quantized
from lowbit.kernels import dispatch
from lowbit.layers.linear import QuantizedLinear

TEXTS = ("int4-g128", "int4-g32-asym", "int3-g64", "int8-row", "nf4-g64", "fp8-b128x128", "nvfp4", "mxfp4", "ternary-g64")


def quantized(text: str, shape: tuple[int, int] = (128, 256)) -> Quantized:
    weight = torch.randn(shape)
    return formats.parse(text).fit(weight, None, False).quantize(weight)


def same(a: Quantized, b: Quantized) -> bool:
    pairs = [(a.codes, b.codes), *((a.parts[k], b.parts[k]) for k in a.parts)]
    return all(
        x.dtype == y.dtype and torch.equal(x.contiguous().view(torch.uint8), y.contiguous().view(torch.uint8)) for x, y in pairs
    )


@pytest.mark.parametrize("text", TEXTS)
def test_it_computes_the_decoded_matrix(text: str) -> None:
    q, bias, x = quantized(text), torch.randn(128), torch.randn(2, 5, 256)
    layer = QuantizedLinear.from_quantized(q, bias)
    assert torch.equal(layer(x), torch.nn.functional.linear(x, q.decode()) + bias)
    near = layer.to(torch.bfloat16).prepare()(x.bfloat16())
    assert near.dtype == torch.bfloat16
    torch.testing.assert_close(near.float(), torch.nn.functional.linear(x, q.decode(), bias), rtol=0.02, atol=0.3)


@pytest.mark.parametrize("text", TEXTS)
def test_moves_keep_codes_and_parts(text: str) -> None:
    q = quantized(text)
    layer = QuantizedLinear.from_quantized(q, torch.randn(128))
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.bfloat16):
        layer = layer.to(dtype).prepare()
        assert layer.dtype == layer.bias.dtype == dtype
        assert same(layer.quantized(), q), dtype
    again = copy.deepcopy(layer)
    assert again.kernel == layer.kernel
    assert same(again.quantized(), q)


@pytest.mark.parametrize("text", TEXTS)
def test_memory_is_what_was_promised(text: str) -> None:
    q = quantized(text)
    layer = QuantizedLinear.from_quantized(q)
    promised = q.format.bits_per_weight(q.shape) * 128 * 256 / 8
    assert layer.memory_bytes() == layer.resident_bytes() == promised
    assert layer.to(torch.bfloat16).prepare().memory_bytes() == promised


def test_a_prepared_layer_holds_one_copy() -> None:
    layer = QuantizedLinear.from_quantized(quantized("int4-g128", (1024, 1024)), dtype=torch.bfloat16).prepare()
    if layer.kernel == dispatch.REFERENCE:
        pytest.skip("this machine has no faster kernel")
    assert layer.resident_bytes() <= layer.memory_bytes() * 1.04
    assert all(name.startswith("prepared_") for name, _ in layer.named_buffers())


@pytest.mark.parametrize("text", ["int4-g128-asym", "int8-row", "nvfp4"])
def test_state_goes_through_a_prepared_layer(text: str) -> None:
    q, other = quantized(text), quantized(text)
    layer = QuantizedLinear.from_quantized(q, dtype=torch.bfloat16).prepare()
    state = layer.state_dict()
    assert {"weight", "weight_scale"} <= set(state)
    target = QuantizedLinear.from_quantized(other, dtype=torch.bfloat16).prepare()
    assert not same(target.quantized(), q)
    target.load_state_dict(state)
    assert same(target.quantized(), q)
    x = torch.randn(3, 256).bfloat16()
    assert target.kernel == layer.kernel
    assert torch.equal(target(x), layer(x))


def test_other_dtypes_run_on_a_prepared_layer() -> None:
    q, x = quantized("int4-g128"), torch.randn(4, 256)
    layer = QuantizedLinear.from_quantized(q, dtype=torch.bfloat16).prepare()
    torch.testing.assert_close(layer(x), x @ q.decode().t(), rtol=0, atol=2e-4)
    assert layer(torch.randn(0, 256)).shape == (0, 128)


@pytest.mark.parametrize("text", [*TEXTS, "int4-g128-asym", "trellis2-plain"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_looked_up_once_changes_nothing(text: str, dtype: torch.dtype) -> None:
    """Of x in slices, of no and of many tokens, in another dtype; after a move; in a copy. x that does not fit is refused."""
    layer = QuantizedLinear.from_quantized(quantized(text), torch.randn(128), dtype).prepare()
    for _ in range(2):
        for x in (torch.randn(2, 3, 264)[..., 8:], torch.randn(256), torch.randn(0, 256), torch.randn(20, 256).double()):
            x = x if x.dtype == torch.float64 else x.to(dtype)
            wanted = layer(x)
            with torch.no_grad():
                found = layer(x)
                assert found.dtype == wanted.dtype and torch.equal(found, wanted)
                assert torch.equal(copy.deepcopy(layer)(x), wanted)
        with torch.no_grad(), pytest.raises(RuntimeError):
            layer(torch.randn(3, 255, dtype=dtype))
        layer = copy.deepcopy(layer).to(torch.float64).to(dtype)
    if text == "int4-g128":
        assert torch.equal(pickle.loads(pickle.dumps(layer)).bias, layer.bias)


def test_many_tokens_equal_few_and_the_reference() -> None:
    q = quantized("int4-g32-asym", (208, 512))
    layer = QuantizedLinear.from_quantized(q, dtype=torch.bfloat16).prepare()
    x = torch.randn(300, 512).bfloat16()
    few = torch.cat([layer(x[i : i + 10]) for i in range(0, 300, 10)])
    exact = x.double() @ q.decode().double().t()
    for y in (few, layer(x), layer.unprepare()(x)):
        assert float((y.double() - exact).norm() / exact.norm()) < 2.6e-3


def test_the_law_is_bit_equal_to_the_decoded_matrix_panel_by_panel(monkeypatch: pytest.MonkeyPatch) -> None:
    law = dispatch.get(dispatch.REFERENCE)
    monkeypatch.setattr(law, "PANEL", 40 * 256)
    for text in TEXTS:
        q, x = quantized(text), torch.eye(256)
        assert torch.equal(QuantizedLinear.from_quantized(q)(x), q.decode().t()), text


def test_explain_gives_reasons() -> None:
    shape, cpu = (1000, 128), torch.device("cpu")
    told = dict(dispatch.explain(formats.parse("int4-g128"), shape, cpu, torch.float16))
    assert told[dispatch.REFERENCE] == ""
    assert "float16" in told["cpu.int4"] or "x86" in told["cpu.int4"]
    assert all(told[name] for name in dispatch.names() if name != dispatch.REFERENCE)
    assert dispatch.pick(formats.parse("int4-g128"), shape, cpu, torch.float16) == dispatch.REFERENCE
    assert dispatch.summary("cpu.int4").startswith("int4 - ")


def test_it_compiles_whole() -> None:
    layer = QuantizedLinear.from_quantized(quantized("int4-g128"), torch.randn(128), torch.bfloat16).prepare()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 256).bfloat16()
    with torch.no_grad():
        assert torch.equal(compiled(x), layer(x))


def test_repr_names_format_and_kernel() -> None:
    assert "int4-g128, kernel=" in repr(QuantizedLinear.from_quantized(quantized("int4-g128")))

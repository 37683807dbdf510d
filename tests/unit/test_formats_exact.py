"""Formats against published errors, against other packages' bytes, and what their names say."""

import pytest
import torch

from lowbit import dtypes, formats
from lowbit.core.errors import FormatError, ShapeError
from lowbit.formats import Grid, Quantized, _scales
from lowbit.testing import formats as suite

MORE = [
    "int5-g128-asym", "int6-g32", "int7-g64", "int8-token", "int4-tensor-asym", "int4-g32-fp16", "int4-g64-bf16",
    "int8-row-fp32", "int2-g16-asym", "int3-row-floatzero-e4m3", "e2m1-b16x32-e4m3", "sf4-g64-dq", "binary-g64-e8m0",
    "ternary-g64-fp16", "dynamic8-g64", "int2-g32-asym-e8m0",
]  # fmt: skip


@pytest.fixture(scope="module")
def gauss() -> torch.Tensor:
    return torch.randn(512, 4096, generator=torch.Generator().manual_seed(1))


def error(name: str, weight: torch.Tensor, search: bool) -> float:
    grid = formats.parse(name).fit(weight, search=search)
    return float((grid.quantize(weight).decode() - weight).square().mean())


@pytest.mark.parametrize("name", MORE)
def test_more_names_pass_the_suite(name: str) -> None:
    suite.check_format(name)


@pytest.mark.gpu
@pytest.mark.parametrize("name", [*formats.examples(), *MORE])
def test_a_gpu_gives_the_same_numbers(name: str) -> None:
    suite.check_tensors(name, "cuda")


@pytest.mark.parametrize(
    ("name", "plain", "searched"),
    [("nf4-g64", 0.00846, 0.00746), ("nf4-g128", 0.00914, 0.00818), ("nvfp4", 0.00905, 0.00717), ("mxfp4", 0.01323, 0.01247)],
)
def test_errors_on_gaussian_numbers(gauss: torch.Tensor, name: str, plain: float, searched: float) -> None:
    """Within 2 % of the published figures; a search may be better than theirs."""
    assert error(name, gauss, search=False) == pytest.approx(plain, rel=0.02)
    assert 0.9 * searched < error(name, gauss, search=True) < 1.02 * searched


@pytest.mark.parametrize(("name", "limit"), [("ternary-row", 0.190), ("binary-row", 0.363)])
def test_errors_of_few_values_are_the_optimum(gauss: torch.Tensor, name: str, limit: float) -> None:
    assert error(name, gauss, search=True) == pytest.approx(limit, rel=0.01)


def test_four_over_six_alone(gauss: torch.Tensor) -> None:
    """The published step between amax / 6 and the whole search; it is what the search must not lose to."""
    x = gauss.view(512, -1, 16) * (256 * 6 / gauss.abs().max())
    element, e4m3 = dtypes.get("e2m1"), dtypes.get("e4m3")
    tried = [e4m3.round(x.abs().amax(-1) / top)[..., None] for top in (6, 4)]
    losses = torch.stack([(element.round(x / s) * s - x).square().sum(-1) for s in tried]).amin(0)
    four_over_six = float(losses.sum() / x.square().sum())
    assert four_over_six == pytest.approx(0.00757, rel=0.02)
    assert error("nvfp4", gauss, search=True) < 0.95 * four_over_six


def test_ternary_search_is_exact() -> None:
    """No threshold of any group gives a smaller weighted error."""
    weight, h = torch.randn(3, 32), torch.rand(32) + 0.01
    grid = formats.parse("ternary-g32-fp32").fit(weight, h)
    found = ((grid.quantize(weight).decode() - weight).square() * h).sum(1)
    for row in range(3):
        size = weight[row].abs()
        for cut in size.tolist():
            chosen = size >= cut
            scale = (size * h)[chosen].sum() / h[chosen].sum()
            loss = ((torch.where(chosen, scale, 0.0) - size).square() * h).sum()
            assert found[row] <= loss * (1 + 1e-5)


@pytest.mark.parametrize(
    ("name", "bits"),
    [("int4-g128", 4.125), ("int4-g128-asym", 4.15625), ("int3-g128-asym", 3 + 19 / 128), ("int2-g64-floatzero", 2.5),
     ("fp8-b128x128", 8 + 16 / 128**2), ("nf4-g64", 4.25), ("mxfp4", 4.25), ("mxfp6", 6.25), ("mxfp8", 8.25), ("mxint8", 8.25),
     ("nvfp4", 4.5 + 32 / 4096**2), ("nf4-g64-dq", 4 + 8 / 64 + 32 / (64 * 256) + 32 / 4096**2), ("binary-g128", 1.125),
     ("ternary-g128", 8 * 820 / 4096 + 16 / 128), ("int4-g32-e4m3", 4.25 + 32 / 4096**2)],
)  # fmt: skip
def test_bits(name: str, bits: float) -> None:
    assert formats.parse(name).bits_per_weight((4096, 4096)) == pytest.approx(bits, abs=1e-9)


def test_double_quantization_reads_bitsandbytes() -> None:
    """Its bytes decode to its floats, exactly; ours differ only where two 8-bit values are almost equally near."""
    theirs = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(96, 512) * 0.02
    weight[3, 64:128] = 0
    packed, state = theirs.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    codes = torch.stack([packed.flatten() >> 4, packed.flatten() & 15], -1).view(96, 512)
    format = formats.parse("nf4-g64-dq")
    parts = {"scale": state.absmax.view(96, 8), "nested_scale": state.state2.absmax, "nested_offset": state.offset.view(1)}
    assert torch.equal(Quantized(format, codes, parts, (96, 512)).decode(), theirs.dequantize_4bit(packed, state))
    ours = format.fit(weight, search=False)
    assert torch.equal(ours.parts["nested_scale"], parts["nested_scale"])
    assert torch.equal(ours.parts["nested_offset"], parts["nested_offset"])
    assert (ours.parts["scale"] != parts["scale"]).float().mean() < 0.01
    exact = weight.view(96, 8, 64).abs().amax(-1)
    assert (ours.scale - exact).abs().sum() <= (Grid(format, parts, (96, 512)).scale - exact).abs().sum()


def test_nf4_codes_are_bitsandbytes() -> None:
    theirs = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(64, 512)
    packed, state = theirs.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    codes = torch.stack([packed.flatten() >> 4, packed.flatten() & 15], -1).view(64, 512)
    quantized = formats.parse("nf4-g64-fp32").fit(weight, search=False).quantize(weight)
    assert torch.equal(quantized.codes, codes)
    assert torch.equal(quantized.decode(), theirs.dequantize_4bit(packed, state))


def test_mxfp4_is_ggufs() -> None:
    """The same exponents and codes by the floor rule, and the same floats from its reader."""
    quants = pytest.importorskip("gguf.quants")
    weight = torch.randn(16, 256) * 0.05
    quantized = formats.parse("mxfp4").fit(weight, search=False).quantize(weight)
    codes = quantized.codes.view(16, 8, 2, 16)
    blocks = torch.cat([quantized.parts["scale"].view(16, 8, 1), codes[:, :, 0] | codes[:, :, 1] << 4], -1).view(16, -1)
    kind = quants.GGMLQuantizationType.MXFP4
    assert torch.equal(torch.from_numpy(quants.dequantize(blocks.numpy(), kind)), quantized.decode())
    theirs = torch.from_numpy(quants.quantize(weight.numpy(), kind)).view(16, 8, 17)
    assert torch.equal(theirs[..., 0], quantized.parts["scale"])


def test_nvfp4_is_compressed_tensors() -> None:
    """Plain scales are those of its formula; its reader gives the same floats."""
    forward = pytest.importorskip("compressed_tensors.quantization.lifecycle.forward")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    weight = torch.randn(16, 256) * 0.05
    quantized = formats.parse("nvfp4").fit(weight, search=False).quantize(weight)
    divisor = quantized.parts["global_scale"]
    assert divisor.item() == pytest.approx(448 * 6 / weight.abs().max().item())
    assert torch.equal(quantized.parts["scale"], (divisor * weight.view(16, 16, 16).abs().amax(-1) / 6).to(torch.float8_e4m3fn))
    arguments = quantization.QuantizationArgs(num_bits=4, type="float", strategy="tensor_group", group_size=16, symmetric=True)
    theirs = forward.dequantize(
        x_q=dtypes.get("e2m1").decode(quantized.codes), scale=quantized.parts["scale"].float(), args=arguments,
        global_scale=divisor, dtype=torch.float32,
    )  # fmt: skip
    assert torch.equal(theirs, quantized.decode())


def test_half_scales_are_exact_in_both_types() -> None:
    scale = torch.cat([torch.logspace(-8, 8, 1000), -torch.logspace(-8, 8, 1000), torch.zeros(1)])
    stored = _scales.store(scale, "half")
    assert stored.dtype == torch.bfloat16
    assert torch.equal(stored.float(), stored.to(torch.float16).float())
    assert (stored != 0).all()
    inside = (scale.abs() > 2**-14) & (scale.abs() < 65280)
    assert torch.equal(stored[inside], scale[inside].bfloat16())


def test_powers_of_two_are_the_nearest_by_ratio_and_exact() -> None:
    scale = torch.tensor([1.0, 1.4, 1.42, 2.0**-127, 2.0**127, 0.0, 3e38])
    stored = _scales.store(scale, "e8m0")
    assert stored.tolist() == [127, 127, 128, 0, 254, 0, 254]
    every = torch.arange(255).to(torch.uint8)
    exact = torch.tensor([2.0 ** (e - 127) for e in range(255)], dtype=torch.float64)
    assert torch.equal(_scales.load(every, "e8m0").double(), exact)
    assert torch.equal(_scales.store(_scales.load(every[1:], "e8m0"), "e8m0"), every[1:])


def test_a_tensor_scale_keeps_e4m3_scales_in_range() -> None:
    """Weights of any size get the same codes: without the tensor's scale small ones would all be 0."""
    weight = torch.randn(16, 256)
    large = formats.parse("int4-g32-e4m3").fit(weight)
    small = formats.parse("int4-g32-e4m3").fit(weight * 2.0**-20)
    assert torch.equal(large.encode(weight), small.encode(weight * 2.0**-20))
    assert small.parts["scale"].dtype == torch.float8_e4m3fn and "global_scale" in small.parts


@pytest.mark.parametrize(
    ("name", "fact"),
    [
        ("int4-g0", "Unknown word 'g0'"),
        ("int4-g128-g64", "'g64' sets the group a second time"),
        ("int4-asim", "Unknown word 'asim' in format 'int4-asim'. Nearest: asym"),
        ("nf4-g64-asym", "only integers have a zero point"),
        ("int9", "integers have 2 to 8 bits"),
        ("in4-g128", "Unknown format 'in4-g128'. Nearest: int4"),
        ("mxfp5", "Use mxfp4, mxfp6 or mxfp8"),
        ("mxfp4-g64", "mxfp4 has its own group"),
        ("nvfp4-fp16", "nvfp4 has its own scale"),
        ("af4-row", "Use af4-g64"),
        ("int4-g64-dq", "Use nf4-g64-dq"),
        ("ternary-g64-e4m3", "stored by itself"),
        ("", "Unknown format ''"),
    ],
)
def test_wrong_names_say_what_to_do(name: str, fact: str) -> None:
    with pytest.raises(FormatError, match=fact):
        formats.parse(name)


def test_a_group_that_does_not_divide_names_those_that_do() -> None:
    with pytest.raises(ShapeError, match=r"int4-g128: group 128 does not divide 96 inputs. Use g32, g16 or row."):
        formats.parse("int4-g128").fit(torch.randn(4, 96))
    with pytest.raises(ShapeError, match=r"mxfp4: group 32 does not divide 100 inputs. Use a format with one scale a row"):
        formats.parse("mxfp4").fit(torch.randn(4, 100))
    with pytest.raises(ShapeError, match=r"the weight has shape \(2, 4, 128\)"):
        formats.parse("int4").fit(torch.randn(2, 4, 128))


def test_every_example_is_listed_once() -> None:
    names = formats.examples()
    assert len(names) == len(set(names)) and {"int4-g128", "nvfp4", "nf4-g64-dq", "fp8-b128x128"} <= set(names)

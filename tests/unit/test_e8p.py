"""The code on E8 against the entries of the published one, against all 65536 vectors, and against published errors."""

import pytest
import torch

from lowbit import dtypes, formats, methods
from lowbit.core.errors import FormatError, ShapeError
from lowbit.dtypes import _e8
from lowbit.solvers import codec, ldl
from lowbit.statistics import Stats
from lowbit.testing.solvers import check_codec, check_feedback, layer, moment_of

CPU = torch.device("cpu")
ENTRIES = {
    0: (0.75,) * 8,
    1: (0.25,) * 8,
    2: (-0.75, 0.25, -0.75, 0.25, 0.25, 0.25, 0.25, 0.25),
    128: (-0.75, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25, -0.75),
    255: (-0.25,) * 8,
    256: (*(0.75,) * 7, -1.25),
    0x1234: (-0.75, -0.75, 0.25, -0.75, -1.75, 0.25, 0.25, 1.25),
    0x7FFF: (-0.25, -1.25, -1.25, -0.25, -0.25, -0.25, -1.25, -1.25),
    0x8000: (0.75, 1.75, 1.75, 0.75, 0.75, 1.75, 0.75, -0.25),
    0xABCD: (1.25, 0.25, 0.25, 1.25, -0.75, -1.75, -0.75, 0.25),
    0xE3FF: (-1.25, -0.25, -0.25, -0.25, -1.25, -1.25, -1.25, 1.75),
    0xFFFF: (-1.25, -1.25, -0.25, -0.25, -1.25, -1.25, -1.25, 0.75),
}
PACKED = {
    0: "99999999", 1: "59999999", 2: "d9999999", 3: "7999b999", 4: "b999b999", 5: "3999b999", 6: "9999d999", 7: "5999d999",
    226: "799b999d", 227: "5b99bb9b", 228: "5b9bbb99", 229: "5b99bbb9", 230: "5bb9bb99", 231: "7b9b9bbb", 255: "7b9bbb9b",
}  # fmt: skip
"""|a| as the reference packs them: 2 v + 8 in four bits, even coordinates first, the last negated where the sum is odd."""


def test_entries_are_the_published_ones() -> None:
    for code, vector in ENTRIES.items():
        low_high = torch.tensor([[code & 255, code >> 8]], dtype=torch.uint8)
        assert dtypes.get("e8p2").decode(low_high).tolist() == [list(vector)], hex(code)


def test_sizes_are_the_published_ones() -> None:
    for index, text in PACKED.items():
        vector = _e8.sizes(CPU)[index].clone()
        vector[7] *= 1 - 2 * (vector.sum().long() % 2)
        nibbles = (2 * vector[[0, 2, 4, 6, 1, 3, 5, 7]] + 8).long().tolist()
        assert f"{sum(n << 4 * i for i, n in enumerate(nibbles)):08x}" == text


def test_all_vectors_differ_and_lie_on_the_shifted_lattice() -> None:
    points = _e8.points(CPU)
    assert len(points.unique(dim=0)) == 1 << 16
    assert float(points.square().mean()) == pytest.approx(1.19629, abs=1e-5)
    doubled = 2 * (points - 0.25)
    assert torch.equal(doubled, doubled.round())
    odd = doubled.long() % 2
    assert bool((odd == odd[:, :1]).all()) and bool((doubled.sum(1).long() % 4 == 0).all())


@pytest.mark.parametrize("size", [0.1, 1.0, 3.0])
def test_nearest_of_all(size: float) -> None:
    points = _e8.points(CPU).double()
    x = torch.randn(96, 8, generator=torch.Generator().manual_seed(0)) * size
    least = torch.cdist(x.double(), points).amin(1)
    found = (points[_e8.nearest(x)] - x).norm(dim=1)
    assert torch.allclose(found, least, atol=1e-6)
    short = _e8.short(CPU).double()
    assert len(short.unique(dim=0)) == 256
    found = (short[_e8.nearest_short(x)] - x).norm(dim=1)
    assert torch.allclose(found, torch.cdist(x.double(), short).amin(1), atol=1e-6)


@pytest.mark.parametrize(("name", "error"), [("e8p2", 0.0914), ("e8p3", 0.0295), ("e8p4", 0.00962)])
def test_errors_on_gaussian_numbers(name: str, error: float) -> None:
    weight = torch.randn(256, 512, generator=torch.Generator().manual_seed(1))
    grid = formats.parse(f"{name}-plain").fit(weight)
    assert float((grid.quantize(weight).decode() - weight).square().mean()) == pytest.approx(error, rel=0.02)


def test_bits_names_and_shapes() -> None:
    assert formats.parse("e8p2").sides == ("had",)
    assert formats.parse("e8p2-plain").bits_per_weight((4096, 4096)) == 2 + 32 / 4096**2
    assert formats.parse("e8p3-row-plain").bits_per_weight((128, 1024)) == 3 + 32 / 1024
    with pytest.raises(FormatError, match="2, 3 or 4 bits"):
        formats.parse("e8p5")
    with pytest.raises(ShapeError, match="a code holds 8 weights of a row"):
        formats.parse("e8p2").fit(torch.randn(8, 36))


def test_codec_and_feedback() -> None:
    weight, x = layer(out=16, inputs=64, tokens=1024)
    format = formats.parse("e8p2-plain")
    rounding = codec.codec(format.fit(weight))
    check_codec(rounding, weight)
    check_feedback(rounding, weight, x)


def test_quip_sharp_stores_what_it_tells() -> None:
    """The loss of the decoded matrix is the reported one, and far below that of integers of as many bits."""
    weight, x = layer(out=32, inputs=128, tokens=2048)
    stats = Stats(2048, {"second_moment": moment_of(x)})
    whole = ldl.loss(weight, stats["second_moment"])
    lost = {}
    for name, format in (("quip_sharp", "e8p2"), ("gptq", "int2-g64")):
        quantized = methods.get(name)().solve(weight, stats, formats.parse(format))  # type: ignore[attr-defined]
        lost[name] = ldl.loss(weight - quantized.decode(), stats["second_moment"]) / whole
        assert lost[name] == pytest.approx(quantized.report["error"], rel=0.01)
    assert lost["quip_sharp"] < 0.75 * lost["gptq"]

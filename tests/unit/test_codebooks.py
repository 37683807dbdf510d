"""Grids, codebooks and random bases: published errors, plain least squares, and the way through layers and files."""

import zlib

import pytest
import torch
from torch import Tensor

from lowbit import dtypes, formats, methods
from lowbit.checkpoints import lowbit as scheme
from lowbit.core.errors import FormatError
from lowbit.dtypes import _higgs
from lowbit.formats import Grid, _books, shelf
from lowbit.kernels import dispatch, packing
from lowbit.solvers import codebooks, codec, descent, grid, ldl
from lowbit.statistics import Stats
from lowbit.testing.solvers import check_codec, layer, moment_of

STORED = (
    "lut3-row",
    "aqlm2x8",
    "aqlm1x16",
    "higgs2x64-row",
    "higgs4x256-g128",
    "higgs1x16-g64-had",
    "e8p2",
    "e8p3",
    "int2-row-kron",
)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("higgs1x4", 0.1177), ("higgs1x8", 0.0344), ("higgs1x16", 0.0098), ("higgs2x16", 0.1098), ("higgs2x64", 0.0299),
        ("higgs4x256", 0.0975),
    ],
)  # fmt: skip
def test_grids_lose_what_is_published(name: str, error: float) -> None:
    """HIGGS' errors on N(0,1), within 2.5 %: the best grids differ by that."""
    x = torch.randn(256, 1024, generator=torch.Generator().manual_seed(1))
    assert float((dtypes.get(name).round(x) - x).square().mean()) == pytest.approx(error, rel=0.025)


@pytest.mark.parametrize(
    ("p", "n", "sum_"), [(1, 16, 3403932071), (2, 16, 2266301420), (2, 256, 1941482740), (4, 256, 3603204963)]
)
def test_grids_are_a_file_format(p: int, n: int, sum_: int) -> None:
    """Another grid than this one would change every stored matrix."""
    whole = _higgs.points(p, n) * _higgs.UNIT
    assert torch.equal(whole, whole.round()) and len(whole.unique(dim=0)) == n
    assert zlib.crc32(whole.to(torch.int16).numpy().tobytes()) == sum_


@pytest.mark.parametrize("name", ["higgs2x64", "higgs4x256"])
def test_codes_are_nearest(name: str) -> None:
    element = dtypes.get(name)
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(2))
    every = element.decode(torch.arange(element.codes).to(torch.uint8)[:, None]).double()
    least = torch.cdist(x.view(-1, every.shape[1]).double(), every).amin(1)
    found = (element.round(x) - x).double().view(-1, every.shape[1]).norm(dim=1)
    assert torch.allclose(found, least, atol=1e-6)


@pytest.mark.parametrize(("name", "fact"), [("higgs2x88", "a power of two"), ("higgs4x4", "4 to 256"), ("higgs2x2.5", "power")])
def test_wrong_grids(name: str, fact: str) -> None:
    with pytest.raises(FormatError, match=fact):
        formats.parse(name)


@pytest.mark.parametrize("name", STORED)
def test_layers_and_files(name: str) -> None:
    """What is written comes back with the same values and bits, and runs as the decoded matrix does."""
    format = formats.parse(name)
    weight = layer(out=32, inputs=128, tokens=8)[0]
    before = format.fit(weight, search=False).quantize(weight)
    stored = scheme.tensors("m", before, torch.bfloat16)
    size = sum(t.nbytes for key, t in stored.items() if not key.endswith("_shape"))
    assert 8 * size == round(format.bits_per_weight((32, 128)) * weight.numel())
    after = scheme.quantized("m", format, lambda key: _get(stored, key))
    assert torch.equal(after.decode(), before.decode()) and after.shape == (32, 128)
    packed, parts = packing.split(format, packing.pack(before), before.shape)
    chosen = dispatch.pick(format, before.shape, torch.device("cpu"), torch.float32)
    prepared = dispatch.prepare(chosen, format, packed, parts, before.shape)
    x = torch.randn(3, 128)
    y = dispatch.linear(x, prepared, chosen, format, before.shape)
    assert torch.allclose(y, x @ before.decode().T, atol=1e-4)


def _get(stored: dict[str, Tensor], key: str) -> Tensor:
    if key not in stored:
        raise scheme.CheckpointError(key)
    return stored[key]


def _aqlm(name: str = "aqlm2x8") -> tuple[Tensor, Tensor, Grid, Tensor]:
    weight, x = layer(out=160, inputs=64, tokens=2048)
    fitted = formats.parse(name).fit(weight)
    return weight, moment_of(x), fitted, fitted.encode(weight)


def test_books_add_up() -> None:
    """Values are scale * (C_0[low] + C_1[high]); 16-bit codes stand low byte first."""
    weight, _, fitted, codes = _aqlm()
    books = fitted.parts["codebooks"].float()
    pairs = codes.view(-1, 2).long()
    expected = (books[0][pairs[:, 0]] + books[1][pairs[:, 1]]).view(weight.shape) * fitted.scale
    assert torch.equal(fitted.inner(codes), expected)
    _, _, wide, codes = _aqlm("aqlm1x16")
    pairs = codes.view(-1, 2).long()
    book = wide.parts["codebooks"].float()[0]
    assert torch.equal(wide.inner(codes), book[pairs[:, 0] + 256 * pairs[:, 1]].view(weight.shape) * wide.scale)


def test_beam_finds_nearly_the_nearest_sum() -> None:
    generator = torch.Generator().manual_seed(3)
    books, x = torch.randn(2, 256, 8, generator=generator), torch.randn(64, 8, generator=generator) * 1.5
    sums = (books[0][:, None] + books[1]).view(-1, 8)
    found = _books.nearest(x, books)
    lost = (books[0][found[:, 0]] + books[1][found[:, 1]] - x).square().sum()
    least = torch.cdist(x.double(), sums.double()).amin(1).square().sum()
    assert float(least) * (1 - 1e-5) <= float(lost) < 1.15 * float(least)


def test_codec_of_books() -> None:
    """One book: the nearest is exact, so the codec keeps the laws of all. In a metric, errors are no larger by that metric."""
    weight, moment, fitted, _ = _aqlm("aqlm1x8")
    rounding = codec.codec(fitted)
    check_codec(rounding, weight)
    block, x = moment[8:16, 8:16], weight[:, 8:16]

    def loss(values: Tensor) -> Tensor:
        return (((values - x) @ block) * (values - x)).sum(1)

    near, plain = rounding.round_in(x, 8, torch.linalg.cholesky(block))[1], rounding.round(x, 8)[1]  # type: ignore[attr-defined]
    assert (loss(near) <= loss(plain) * (1 + 1e-4)).all() and loss(near).sum() < 0.95 * loss(plain).sum()


def test_refit_reaches_least_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    """With steps enough, the loss has no slope left in any vector; slopes by autograd of the formula in float64."""
    weight, moment, fitted, codes = _aqlm()
    monkeypatch.setattr(codebooks, "STEPS", 200)
    pairs = codes.view(-1, 2).long()

    def slope(books: Tensor) -> float:
        books = books.double().requires_grad_()
        values = (books[0][pairs[:, 0]] + books[1][pairs[:, 1]]).view(weight.shape) * fitted.scale
        error = weight.double() - values
        ((error @ moment.double()) * error).sum().backward()
        assert books.grad is not None
        return float(books.grad.norm())

    moved = codebooks._moved(weight, moment, fitted, shelf.get("aqlm"), codes)
    assert slope(moved) < 0.01 * slope(fitted.parts["codebooks"])


def test_rounds_never_raise_the_loss() -> None:
    weight, moment, fitted, codes = _aqlm()
    values = fitted.inner(codes)
    last = ldl.loss(weight - values, moment)
    for _ in range(3):
        fitted, values = codebooks.refit(weight, moment, fitted, codes, values)
        assert torch.equal(values, fitted.inner(codes))
        refitted = ldl.loss(weight - values, moment)
        codes, values = descent.sweep(weight, moment, codec.codec(fitted), codes, values)
        swept = ldl.loss(weight - values, moment)
        assert swept <= refitted * (1 + 1e-5) and refitted <= last * (1 + 1e-5)
        last = swept


def test_aqlm_says_where_books_outweigh_codes() -> None:
    weight, x = layer(out=32, inputs=128, tokens=1024)
    stats = Stats(1024, {"second_moment": moment_of(x)})
    quantized = methods.get("aqlm")(rounds=1).solve(weight, stats, formats.parse("aqlm2x8"))  # type: ignore[attr-defined]
    assert "codebooks take 16.00 bits a weight beside 2.00 of codes" in str(quantized.report["fallback"])
    assert formats.parse("aqlm2x8").bits_per_weight((4096, 4096)) == 2 + 16 / 4096 + 65536 / 4096**2
    assert formats.parse("aqlm1x16").bits_per_weight((4096, 4096)) == pytest.approx(2.5 + 16 / 4096)


@pytest.mark.parametrize(("name", "fact"), [("aqlm2x7", "whole bytes"), ("aqlm2x8-g128", "a scale for each row")])
def test_wrong_codebooks(name: str, fact: str) -> None:
    with pytest.raises(FormatError, match=fact):
        formats.parse(name)


def test_quip_has_the_levels_of_the_paper() -> None:
    """2**bits levels spread evenly over -rho .. rho times the rms, in the random basis."""
    weight, x = layer(out=32, inputs=128, tokens=1024)
    stats = Stats(1024, {"second_moment": moment_of(x)})
    format = formats.parse("int2-tensor-floatzero-kron")
    quantized = methods.get("quip")().solve(weight, stats, format)  # type: ignore[attr-defined]
    inner = quantized.grid.inner(quantized.codes)
    rms = format.begin(weight)[1].square().mean().sqrt()
    levels = inner.unique() / rms
    assert torch.allclose(levels, torch.tensor([-2.4, -0.8, 0.8, 2.4]), rtol=5e-3)
    lost = ldl.loss(weight - quantized.decode(), stats["second_moment"]) / ldl.loss(weight, stats["second_moment"])
    assert lost == pytest.approx(quantized.report["error"], rel=0.01)


def test_higgs_loses_the_error_of_its_grid_in_any_matrix() -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(4))
    weight[:, ::17] *= 5
    quantized = methods.get("higgs")().solve(weight, Stats(), formats.parse("higgs2x256-row"))  # type: ignore[attr-defined]
    assert quantized.report["error"] == pytest.approx(0.0079, rel=0.05)
    assert grid.nearest(weight, formats.parse("int4-row"), search=True).report["error"] > 0.009

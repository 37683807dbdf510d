"""Matrix registers: the same sums as without them, bfloat16 weights for many tokens, each token by itself."""

import pytest
import torch

from lowbit import formats
from lowbit.formats import Quantized
from lowbit.kernels import dispatch, packing
from lowbit.kernels.cpu import _build, integers, trellis

pytestmark = pytest.mark.skipif(
    bool(_build.missing()) or not _build.has(trellis.TILES), reason="no matrix registers on this machine"
)
SHAPES = ((80, 768), (144, 96), (64, 1056))


def quantized(text: str, shape: tuple[int, int]) -> Quantized:
    format = formats.parse(text)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return format.fit(weight, None, False).quantize(weight)


def product(x: torch.Tensor, name: str, q: Quantized) -> torch.Tensor:
    packed, parts = packing.split(q.format, packing.pack(q), q.shape)
    return dispatch.linear(x, dispatch.prepare(name, q.format, packed, parts, q.shape), name, q.format, q.shape)


def apart(y: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((y.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize("text", ["int4-g32", "int4-row", "int3-g96", "int2-row", "int8-row", "int5-g32-asym", "binary-row"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_sums_of_bytes_are_those_of_one_token(text: str, dtype: torch.dtype) -> None:
    """Weights rounded to bfloat16 would show by 2e-3."""
    torch.manual_seed(0)
    for shape in SHAPES:
        if shape[1] % (formats.parse(text).group[1] or 1):
            continue
        q = quantized(text, shape)
        for tokens in (3, 6, 8) if dtype == torch.bfloat16 else (3, 6, 8, 40):
            x = torch.randn(tokens, shape[1]).to(dtype)
            alone = torch.cat([product(row[None], "cpu.integers", q) for row in x])
            assert apart(product(x, "cpu.integers", q), alone) < (5e-4 if dtype == torch.bfloat16 else 1e-6), (shape, tokens)


@pytest.mark.parametrize("tokens", [3, 4, 5, 8, 16])
@pytest.mark.parametrize("code", [None, 0, 15])
def test_groups_that_share_a_tile_give_what_one_token_gives(tokens: int, code: int | None) -> None:
    """To the bit: the greatest sums of both bytes of x, a token without a number; an odd number of groups goes another way."""
    torch.manual_seed(0)
    for shape in ((80, 768), (16, 64), (144, 1024), *([(64, 1056)] if tokens < 9 else [])):
        q = quantized("int4-g32", shape)
        if code is not None:
            q = Quantized(q.format, torch.full_like(q.codes, code), q.parts, q.shape)
        x = torch.randn(tokens, shape[1])
        x[0], x[1] = (-1.0) ** (tokens % 2), torch.randn(shape[1]).sign()
        x[2, 5] = torch.nan
        x = x.bfloat16()
        alone = torch.cat([product(row[None], "cpu.integers", q) for row in x])
        assert torch.equal(product(x, "cpu.integers", q).nan_to_num(7.0), alone.nan_to_num(7.0)), shape


def test_codes_of_x_are_summed_exactly() -> None:
    torch.manual_seed(0)
    for text in ("int4-g32", "int8-row", "int3-g64"):
        q = quantized(text, SHAPES[0])
        q = Quantized(q.format, q.codes, {"scale": torch.ones_like(q.parts["scale"])}, q.shape)
        packed, parts = packing.split(q.format, packing.pack(q), q.shape)
        prepared = integers.prepare(q.format, packed, parts, q.shape)
        for tokens in (3, 16, 50):
            codes = torch.randint(-128, 128, (tokens, q.shape[1]), dtype=torch.int8)
            y = integers.integer(codes, torch.ones(tokens, 1), prepared, q.format, q.shape)
            assert torch.equal(y.double(), codes.double() @ q.decode().double().t())


@pytest.mark.parametrize(
    "text", ["int4-g32", "int3-g32-asym", "int4-row", "int8-row", "ternary-row", "trellis2-plain", "trellis_int3-plain"]
)
def test_many_tokens_meet_weights_rounded_to_bfloat16(text: str) -> None:
    """Twice the error of rounding y alone at most; a scale for a whole row follows the sum of codes, which are exact."""
    torch.manual_seed(0)
    name = "cpu.trellis" if text.startswith("trellis") else "cpu.integers"
    for shape in SHAPES[:1] if name == "cpu.trellis" else SHAPES:
        q = quantized(text, shape)
        bound = 5e-4 if text.endswith("row") else 3e-3
        for tokens in (17, 48, 49, 150):
            x = torch.randn(tokens, shape[1]).bfloat16()
            wanted = (x.double() @ q.decode().double().t()).bfloat16()
            assert apart(product(x, name, q), wanted) < bound, (shape, tokens)


@pytest.mark.parametrize(("text", "tokens"), [("int4-g64", 8), ("int4-g64", 60), ("trellis2-plain", 8)])
def test_what_is_no_number_stays_in_its_token(text: str, tokens: int) -> None:
    q = quantized(text, SHAPES[0])
    name = "cpu.trellis" if text.startswith("trellis") else "cpu.integers"
    x = torch.ones(tokens, q.shape[1], dtype=torch.bfloat16)
    x[2, 5], x[4] = float("inf"), 0
    y = product(x, name, q)
    assert not y[2].isfinite().any() and (y[4] == 0).all() and y[[0, 1, 3, *range(5, tokens)]].isfinite().all()

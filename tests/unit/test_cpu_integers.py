"""Whole-number kernels in C++ at the edge of their sums, and the memory that packed weights lie in."""

import pytest
import torch

from lowbit import formats
from lowbit.formats import Quantized
from lowbit.kernels import packing
from lowbit.kernels.cpu import _build, integers

pytestmark = pytest.mark.skipif(bool(_build.missing()), reason="no C++ kernels for this machine")
SHAPE = (80, 768)


def matrix(text: str, code: int) -> Quantized:
    """Every weight the same code, every scale 1."""
    format = formats.parse(text)
    codes = torch.full(SHAPE, code, dtype=torch.uint8)
    return Quantized(format, codes, {"scale": torch.ones(format.groups(SHAPE), dtype=torch.bfloat16)}, SHAPE)


@pytest.mark.parametrize(
    "text", ["binary-g64", "ternary-g64", *(f"int{bits}-{group}" for bits in (2, 3, 4, 5, 6, 8) for group in ("g32", "row"))]
)
@pytest.mark.parametrize("tokens", [1, 2, 4, 17])
def test_sums_of_extremes_are_exact(text: str, tokens: int) -> None:
    """Sums of 16 bits, widened in turns, hold the greatest codes times the least and the greatest bytes of x."""
    format = formats.parse(text)
    for code in (0, int(format.dtype.codes) - 1):
        quantized = matrix(text, code)
        packed, parts = packing.split(format, packing.pack(quantized), SHAPE)
        prepared = integers.prepare(format, packed, parts, SHAPE)
        dense = quantized.decode().double()
        for x in (-128, 127):
            y = integers.integer(
                torch.full((tokens, SHAPE[1]), x, dtype=torch.int8), torch.ones(tokens, 1), prepared, format, SHAPE
            )
            assert torch.equal(y.double(), torch.full((tokens, SHAPE[1]), float(x)).double() @ dense.t())


def test_large_tensors_lie_on_huge_pages() -> None:
    plain = torch.arange(_build.HUGE // 2 + 5, dtype=torch.int32)
    settled = _build.settled(plain.view(-1, 1))
    assert torch.equal(settled, plain.view(-1, 1)) and settled.data_ptr() % _build.HUGE == 0
    assert _build.settled(plain[:100]).data_ptr() == plain.data_ptr()

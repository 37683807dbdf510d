"""Codes of several weights (vectors of eight, trellises) on a GPU against the float64 product of the decoded matrix."""

from typing import Any

import pytest
import torch

from lowbit import formats
from lowbit.kernels import packing
from lowbit.kernels.cuda import trellis, vectors

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]

WIDE, LEAST, LONG = (4096, 4096), (16, 32), (1024, 14336)


def scales(format: formats.Format, shape: tuple[int, int]) -> dict[str, torch.Tensor]:
    """The parts of a matrix of random codes."""
    if format.rule == "aqlm":
        scale = (torch.rand(format.groups(shape), device="cuda") + 0.5) / 100
        return {"scale": scale.bfloat16(), "codebooks": torch.randn(2, 256, 8, device="cuda").half()}
    return {"scale": torch.full(format.groups(shape), 0.01, device="cuda")}


@pytest.mark.parametrize(
    ("kernel", "text", "odd"),
    [
        *((vectors, text, (152, 1056)) for text in ("e8p2-plain", "aqlm2x8")),
        *((trellis, f"trellis{bits}-plain", (144, 1040)) for bits in (2, 3, 4)),
    ],
)
@pytest.mark.parametrize("shape", [WIDE, LEAST, None, LONG])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products(kernel: Any, text: str, odd: tuple[int, int], shape: tuple[int, int] | None, dtype: torch.dtype) -> None:
    format, shape = formats.parse(text), shape or odd
    codes = torch.randint(0, format.dtype.codes, format.codes_shape(shape), dtype=torch.uint8, device="cuda")
    q = formats.Quantized(format, codes, scales(format, shape), shape)
    packed, parts = packing.split(format, packing.pack(q), shape)
    assert not kernel.supports(format, shape, codes.device, dtype, 1)
    prepared = kernel.prepare(format, packed, parts, shape)
    again, parts_again = kernel.restore(prepared, format, shape)
    assert torch.equal(again, packed) and all(torch.equal(parts_again[name], part) for name, part in parts.items())
    exact = q.decode().double()
    for tokens in (1, 3, 8, 9, 16, 17, 64, 65, 200):
        x = torch.randn(tokens, shape[1], device="cuda").to(dtype)
        poison = torch.full((tokens, shape[0]), float("nan"), device="cuda", dtype=dtype)
        del poison  # the next tensor of this size gets its memory
        wanted = x.double() @ exact.T
        error = float((kernel.linear(x, prepared, format, shape).double() - wanted).norm() / wanted.norm())
        assert error < 3e-3, (tokens, error)

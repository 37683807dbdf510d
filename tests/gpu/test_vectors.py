"""Codes of eight weights on a GPU against the float64 product of the decoded matrix. Needs an NVIDIA GPU."""

import pytest
import torch

from lowbit import formats
from lowbit.kernels import packing
from lowbit.kernels.cuda import vectors

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]


@pytest.mark.parametrize("text", ["e8p2-plain", "aqlm2x8"])
@pytest.mark.parametrize("shape", [(4096, 4096), (16, 32), (152, 1056), (1024, 14336)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products(text: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    format = formats.parse(text)
    codes = torch.randint(0, 256, format.codes_shape(shape), dtype=torch.uint8, device="cuda")
    parts = {"scale": (torch.rand(format.groups(shape), device="cuda") + 0.5) / 100}
    if text == "aqlm2x8":
        parts = {"scale": parts["scale"].bfloat16(), "codebooks": torch.randn(2, 256, 8, device="cuda").half()}
    q = formats.Quantized(format, codes, parts, shape)
    packed, parts = packing.split(format, packing.pack(q), shape)
    assert not vectors.supports(format, shape, codes.device, dtype, 1)
    prepared = vectors.prepare(format, packed, parts, shape)
    again, parts_again = vectors.restore(prepared, format, shape)
    assert torch.equal(again, packed) and all(torch.equal(parts_again[name], part) for name, part in parts.items())
    exact = q.decode().double()
    for tokens in (1, 3, 8, 9, 16, 17, 64, 65, 200):
        x = torch.randn(tokens, shape[1], device="cuda").to(dtype)
        poison = torch.full((tokens, shape[0]), float("nan"), device="cuda", dtype=dtype)
        del poison  # the next tensor of this size gets its memory
        wanted = x.double() @ exact.T
        error = float((vectors.linear(x, prepared, format, shape).double() - wanted).norm() / wanted.norm())
        assert error < 3e-3, (tokens, error)

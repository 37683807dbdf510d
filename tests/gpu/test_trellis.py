"""Trellis codes on a GPU against the float64 product of the decoded matrix. Needs an NVIDIA GPU."""

import pytest
import torch

from lowbit import formats
from lowbit.kernels import packing
from lowbit.kernels.cuda import trellis

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("shape", [(4096, 4096), (16, 32), (144, 1040), (1024, 14336)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products(bits: int, shape: tuple[int, int], dtype: torch.dtype) -> None:
    format = formats.parse(f"trellis{bits}-plain")
    codes = torch.randint(0, 1 << bits, format.codes_shape(shape), dtype=torch.uint8, device="cuda")
    q = formats.Quantized(format, codes, {"scale": torch.tensor([[0.01]], device="cuda")}, shape)
    packed, parts = packing.split(format, packing.pack(q), shape)
    assert not trellis.supports(format, shape, codes.device, dtype, 1)
    prepared = trellis.prepare(format, packed, parts, shape)
    again, _ = trellis.restore(prepared, format, shape)
    assert torch.equal(again, packed)
    exact = q.decode().double()
    for tokens in (1, 3, 8, 9, 16, 17, 64, 65, 200):
        x = torch.randn(tokens, shape[1], device="cuda").to(dtype)
        poison = torch.full((tokens, shape[0]), float("nan"), device="cuda", dtype=dtype)
        del poison  # the next tensor of this size gets its memory
        wanted = x.double() @ exact.T
        error = float((trellis.linear(x, prepared, format, shape).double() - wanted).norm() / wanted.norm())
        assert error < 3e-3, (tokens, error)

"""Products of many tokens in one launch against the float64 product of the decoded matrix. Needs an NVIDIA GPU."""

import pytest
import torch

from lowbit import formats
from lowbit.kernels import packing
from lowbit.kernels.cuda import _fragments, _prefill, linear
from lowbit.kernels.cuda._prefill import SPLIT, WIDE, Plan

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]


@pytest.mark.parametrize("plan", [Plan(WIDE, True, 0), Plan(WIDE, False, 0), Plan(SPLIT, True, 0), None])
@pytest.mark.parametrize("tokens", [65, 257, 1000, 4100])
@pytest.mark.parametrize(("text", "rows", "inputs", "dtype"), [
    ("int4-g128", 4096, 1024, torch.bfloat16),
    ("int4-g128", 512, 14336, torch.bfloat16),
    ("int3-g64-asym", 1000, 1088, torch.bfloat16),
    ("nf4-g64", 272, 1024, torch.float16),
    ("int8-row", 4097, 1032, torch.bfloat16),
    ("int2-g32-asym", 2056, 512, torch.float16),
])  # fmt: skip
def test_products(text: str, rows: int, inputs: int, dtype: torch.dtype, tokens: int, plan: Plan | None) -> None:
    """Shares of whole tiles, several each, and of chunks; twice, since counters must be zero again."""
    format = formats.parse(text)
    q = format.fit(torch.randn(rows, inputs, device="cuda"), search=False).quantize(torch.randn(rows, inputs, device="cuda"))
    packed, parts = packing.split(format, packing.pack(q), q.shape)
    prepared = linear.prepare(format, packed, parts, q.shape)
    x = torch.randn(tokens, inputs, device="cuda").to(dtype)
    if plan and prepared["low"].shape[1] % plan.cut.split:
        pytest.skip("two sets take turns along an even number of chunks")
    exact = x.double() @ q.decode().double().T
    for _ in range(2):
        y = torch.full((tokens, rows), float("nan"), dtype=dtype, device="cuda")
        _prefill.launch(x, prepared, y, linear.kind(format), rows, _fragments.beside(prepared, dtype), plan)
        error = (y.double() - exact).norm(dim=1) / exact.norm(dim=1)
        assert float(error.max()) < (6e-3 if dtype == torch.bfloat16 else 1e-3)

"""The Triton kernels in Triton's interpreter, on the CPU, against the float64 product of the decoded matrix.

The interpreter must be chosen before triton is first imported, so the tests of this file run in a process of their own.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lowbit import formats
from lowbit.kernels import packing

INSIDE = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
inside = pytest.mark.skipif(not INSIDE, reason="runs in the process that test_in_the_interpreter starts")


@pytest.mark.skipif(INSIDE, reason="already in the interpreter")
def test_in_the_interpreter() -> None:
    source = Path(__file__).parents[2] / "src"
    path = os.pathsep.join(p for p in (str(source), os.environ.get("PYTHONPATH", "")) if p)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout, done.stdout[-4000:]


def quantized(text: str, rows: int, inputs: int) -> formats.Quantized:
    torch.manual_seed(rows + inputs)
    return formats.parse(text).fit(torch.randn(rows, inputs), search=False).quantize(torch.randn(rows, inputs))


CASES = [
    ("int4-g128", 64, 512, 1, torch.bfloat16),
    ("int4-g128-asym", 80, 384, 3, torch.float16),
    ("int4-g32-asym", 72, 96, 17, torch.bfloat16),
    ("int4-g64", 64, 512, 2, torch.float16),
    ("int4-row", 30, 200, 5, torch.bfloat16),
    ("int8-row", 33, 136, 16, torch.bfloat16),
    ("int8-g128-asym", 64, 256, 1, torch.float16),
    ("int3-g128-asym", 64, 1024, 4, torch.bfloat16),
    ("int3-g32", 40, 96, 1, torch.float16),
    ("int2-g64-asym", 64, 1024, 15, torch.bfloat16),
]


@inside
@pytest.mark.parametrize(("text", "rows", "inputs", "tokens", "dtype"), CASES)
def test_product_equals_the_decoded_matrix(text: str, rows: int, inputs: int, tokens: int, dtype: torch.dtype) -> None:
    from lowbit.kernels.triton import linear

    q = quantized(text, rows, inputs)
    stored = packing.pack(q)
    packed, parts = packing.split(q.format, stored, q.shape)
    prepared = linear.prepare(q.format, packed, parts, q.shape)
    x = torch.randn(tokens, inputs).to(dtype)
    exact = x.double() @ q.decode().double().T
    blocks = linear.planes(q.format).blocks(inputs)
    for slices in sorted({1, blocks}):
        how = linear.Tiles(32, 16, slices, 4, 2)
        y = linear.product(x, prepared, q.format, rows, how)
        assert (y.double() - exact).norm() / exact.norm() < (4e-3 if dtype == torch.bfloat16 else 5e-4)
        assert not prepared["count"].any()
    early = linear.product(x, prepared, q.format, rows, linear.Tiles(32, 16, 1, 4, 2, True))
    assert (early.double() - exact).norm() / exact.norm() < 8e-3


@inside
@pytest.mark.parametrize(("text", "rows", "inputs", "tokens", "dtype"), CASES)
def test_matrix_is_the_decoded_matrix(text: str, rows: int, inputs: int, tokens: int, dtype: torch.dtype) -> None:
    from lowbit.kernels.triton import linear

    q = quantized(text, rows, inputs)
    packed, parts = packing.split(q.format, packing.pack(q), q.shape)
    w = linear.matrix(linear.prepare(q.format, packed, parts, q.shape), q.format, q.shape, dtype)
    assert torch.equal(w, q.decode().to(dtype))
